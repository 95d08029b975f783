"""What one would write without raysere's server: the same ensemble behind a plain FastAPI route,
each request in a thread of its own.

``python -m benchmarks.serving.plain ENSEMBLE PORT [--in-turn]``; with ``--in-turn`` they take turns
at the model, which keeps threads that wait for the processor from slowing each other.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading

import uvicorn
from fastapi import FastAPI, UploadFile

from raysere.ensemble.saved.ensemble import Ensemble

app = FastAPI()


@app.post("/v1/predict")
def predict(file: UploadFile) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".audio") as kept:
        kept.write(file.file.read())
        kept.flush()
        with app.state.turn:
            return app.state.ensemble.predict([kept.name]).to_dicts()[0]


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"status": "ready"}


if __name__ == "__main__":
    app.state.ensemble = Ensemble.load(sys.argv[1]).open()
    app.state.turn = threading.Lock() if "--in-turn" in sys.argv[3:] else contextlib.nullcontext()
    print("ready", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error" if not os.environ.get("RAYSERE_DEBUG") else "info")
