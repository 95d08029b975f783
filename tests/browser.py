"""Headless Chromium over its DevTools protocol: enough to open a page, give it a file, press a
button and read what it says.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import websockets

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One page. ``faults`` collects what it logged as errors, and exceptions of its scripts."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self.faults = socket, 0, []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.recv(), 30))
            if message.get("method") == "Runtime.exceptionThrown" or (
                message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error"
            ):
                self.faults.append(message["params"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    async def value(self, script: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 30) -> Any:
        for _ in range(int(seconds * 10)):
            if found := await self.value(script):
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{script} stays false; the page says: {await self.value('document.body.innerText')}")

    async def give(self, selector: str, path: Path) -> None:
        root = await self.call("DOM.getDocument")
        node = await self.call("DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

    async def enter(self, selector: str, text: str) -> None:
        """Type ``text`` into a field, then the key Enter, as a user does: by events that the
        browser trusts.
        """
        await self.value(f"(field => {{ field.value = ''; field.focus() }})(document.querySelector({json.dumps(selector)}))")
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")

    async def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))


@contextlib.asynccontextmanager
async def opened(url: str, profile: Path, microphone: Path | None = None, size: str = "1000,900") -> AsyncIterator[Tab]:
    """A tab on ``url``; the microphone hears the WAV file ``microphone``."""
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([*command, f"--window-size={size}", *(fake if microphone else []), "about:blank"], stderr=subprocess.DEVNULL)
    try:
        found = profile / "DevToolsActivePort"
        for _ in range(300):
            if found.is_file() and found.read_text().strip():
                break
            await asyncio.sleep(0.1)
        port = int(found.read_text().splitlines()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            target = next(tab for tab in json.load(answer) if tab["type"] == "page")
        async with websockets.connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            tab = Tab(socket)
            for domain in ("Runtime", "Log", "DOM", "Page"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            await tab.until("document.readyState === 'complete'")
            yield tab
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
