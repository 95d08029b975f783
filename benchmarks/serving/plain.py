"""What one would write without raysere's server: the same ensemble behind a plain FastAPI route, one request at a time in a thread each.

``python -m benchmarks.serving.plain ENSEMBLE PORT``
"""

from __future__ import annotations

import os
import sys
import tempfile

import uvicorn
from fastapi import FastAPI, UploadFile

from raysere.ensemble.predict import Ensemble

app = FastAPI()


@app.post("/v1/predict")
def predict(file: UploadFile) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".audio") as kept:
        kept.write(file.file.read())
        kept.flush()
        return app.state.ensemble.predict([kept.name]).to_dicts()[0]


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"status": "ready"}


if __name__ == "__main__":
    app.state.ensemble = Ensemble.load(sys.argv[1]).open()
    print("ready", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error" if not os.environ.get("RAYSERE_DEBUG") else "info")
