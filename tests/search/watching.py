"""TensorBoard on a free port of this machine, and a headless Chromium that looks at it over the
DevTools protocol.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """``raysere tensorboard RUN``; its address."""
    command = [sys.executable, "-m", "raysere", "tensorboard", str(run), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr or ():
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found.group()
                return
        raise AssertionError("TensorBoard did not start:\n" + "".join(said))
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, body: Any = None) -> Any:
    """The JSON answer; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def sessions(url: str) -> dict[str, dict[str, Any]]:
    """Session groups of the HParams page by name, as the page asks for them."""
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    body = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 10_000}
    return {group["name"]: group for group in ask(f"{url}data/plugin/hparams/session_groups", body)["sessionGroups"]}


def look(url: str, wanted: list[str], profile: Path, picture: Path | None = None, size: str = "1400,900", limit_s: float = 90) -> str:
    """All text of the page in Chromium, shadow trees included, once every wanted text is on it (or
    the limit is over).
    """
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([*command, f"--window-size={size}", "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        port = next(
            found.group(1) for line in process.stderr or () if (found := re.search(r"DevTools listening on ws://[\d.]+:(\d+)", line))
        )
        tab = next(tab for tab in ask(f"http://127.0.0.1:{port}/json") if tab["type"] == "page")
        return asyncio.run(_look(tab["webSocketDebuggerUrl"], url, wanted, picture, limit_s))
    finally:
        process.terminate()
        process.wait(30)


_TEXT = """(() => { const parts = []; const walk = node => { if (node.nodeType === 3) parts.push(node.data);
  else if (!['SCRIPT', 'STYLE'].includes(node.nodeName)) { if (node.shadowRoot) walk(node.shadowRoot); node.childNodes.forEach(walk);
  if (node.nodeName === 'IFRAME' && node.contentDocument) walk(node.contentDocument); } };
  walk(document); return parts.map(part => part.trim()).filter(Boolean).join('\\n'); })()"""


async def _look(socket: str, url: str, wanted: list[str], picture: Path | None, limit_s: float) -> str:
    import websockets

    async with websockets.connect(socket, max_size=None) as stream:
        number, text, end = 0, "", time.monotonic() + limit_s

        async def call(method: str, **params: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            await stream.send(json.dumps({"id": number, "method": method, "params": params}))
            while (answer := json.loads(await stream.recv())).get("id") != number:
                pass
            return answer["result"]

        await call("Page.enable")
        await call("Page.navigate", url=url)
        while not all(part in text for part in wanted) and time.monotonic() < end:
            await asyncio.sleep(0.3)
            text = (await call("Runtime.evaluate", expression=_TEXT, returnByValue=True))["result"].get("value") or ""
        if picture is not None:
            await asyncio.sleep(3)
            picture.write_bytes(base64.b64decode((await call("Page.captureScreenshot", format="png"))["data"]))
        return text
