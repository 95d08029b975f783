"""The page at / in a real browser: a dropped file and a recording are answered and drawn."""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, opened
from live import listening

from raysere.serving.app import create_app
from raysere.serving.limits import Limits

if CHROMIUM is None:
    warnings.warn("the page is NOT TESTED: no chromium on the PATH", stacklevel=1)
    pytest.skip("no chromium on the PATH", allow_module_level=True)


_SAID = "document.getElementById('verdict').textContent"
_COLOURS = """(() => { const c = document.getElementById('wave'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
  const seen = new Set(), row = c.width * (c.height - 3)
  for (let x = 0; x < c.width; x += 4) seen.add(d.slice(4 * (row + x), 4 * (row + x) + 3).join())
  return seen.size })()"""


@pytest.mark.timeout(180)
def test_a_dropped_file_and_a_recording_are_answered_and_drawn(real_run, clips, tmp_path):
    high, low = (soundfile.read(clip)[0] for clip in clips[:2])
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.concatenate([high] * 5 + [low] * 5), 16000, subtype="PCM_16")
    app = create_app(real_run["folder"] / "ensemble", Limits(segment_s=1), measures=tmp_path / "measures", threads=1)

    async def visit(url):
        async with opened(url, tmp_path / "profile", microphone=clip) as tab:
            await tab.give("#file", clip)
            dropped = await tab.until(_SAID)
            colours = await tab.value(_COLOURS)
            await tab.value("document.getElementById('verdict').textContent = ''; document.getElementById('record').click()")
            await tab.until("document.getElementById('record').textContent === 'Stop'")
            await asyncio.sleep(1.5)
            await tab.value("document.getElementById('record').click()")
            recorded = await tab.until(_SAID)
            await tab.give("#file", real_run["folder"] / "experiment.yaml")
            fault = await tab.until("document.getElementById('fault').textContent")
            refused = [one for one in tab.faults if "415" not in str(one)]
            await tab.call("Page.navigate", url=url + "docs")
            await tab.until("document.querySelectorAll('.opblock').length >= 5")
            return dropped, colours, recorded, fault, refused

    with listening(app) as url:
        dropped, colours, recorded, fault, refused = asyncio.run(visit(url))
    assert dropped.endswith("% sure")
    assert colours >= 2  # a trace of both
    assert recorded.endswith("% sure")
    assert "not audio" in fault
    assert refused == []
