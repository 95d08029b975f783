"""The pages at / and /docs in a real browser: files, recordings and texts are answered and drawn; a
token is asked for and sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, opened
from live import listening

from raysere.base.files import read_json, read_yaml, write_yaml
from raysere.ensemble.saved.card import write_card
from raysere.serving.app import create_app
from raysere.serving.deployment import token_hash
from raysere.serving.limits import Limits

if CHROMIUM is None:
    warnings.warn("the page is NOT TESTED: no chromium on the PATH", stacklevel=1)
    pytest.skip("no chromium on the PATH", allow_module_level=True)


_SAID = "document.getElementById('verdict').textContent"
_COLOURS = """(() => { const c = document.getElementById('wave'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
  const seen = new Set(), row = c.width * (c.height - 3)
  for (let x = 0; x < c.width; x += 4) seen.add(d.slice(4 * (row + x), 4 * (row + x) + 3).join())
  return seen.size })()"""
_LABELS = """[...document.querySelectorAll('#labels span')].map(one => { const box = one.getBoundingClientRect()
  const on = document.elementsFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2)
  return { text: one.textContent, left: box.left, right: box.right, top: on[0] === one } })"""
_SHOWN = "[...document.querySelectorAll('main *')].filter(one => one.checkVisibility()).map(one => one.id)"


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
            drawn = [await tab.value(_LABELS)]
            await tab.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=False)
            await tab.until("document.getElementById('wave').clientWidth < 400")
            drawn.append(await tab.value(_LABELS))
            await tab.enter("#text", "what a wonderful morning")
            text = await tab.until("document.getElementById('verdict').textContent.includes('text') && " + _SAID)
            shown = await tab.value(_SHOWN)
            await tab.value("document.getElementById('text').value = ''")
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
            return dropped, colours, recorded, fault, refused + tab.faults[2:], drawn, text, shown

    with listening(app) as url:
        dropped, colours, recorded, fault, refused, drawn, text, shown = asyncio.run(visit(url))
    assert dropped.endswith("% sure")
    assert colours >= 2  # a trace of both
    assert recorded.endswith("% sure")
    assert "not audio" in fault
    assert refused == []
    for labels in drawn:
        assert labels
        assert all(one["top"] for one in labels), labels  # nothing lies over a label
        assert all(one["right"] <= other["left"] for one, other in pairwise(labels)), labels
    assert {one["text"] for one in drawn[0]} == {"high", "low"}
    assert text.startswith("The text alone: ")
    assert {"verdict", "classes", "card"} <= set(shown)
    assert not {"wave", "labels", "player", "synthetic", "token"} & set(shown)  # the drawing of the file is gone


@pytest.fixture
def synthetic(ensemble_copy):
    """The ensemble as if it had been trained on the demo corpus."""
    record = {**read_yaml(ensemble_copy / "ensemble.yaml"), "synthetic": True}
    (ensemble_copy / "card.md").write_text(write_card(record, read_json(ensemble_copy / "evaluation.json")))
    sha256 = hashlib.sha256((ensemble_copy / "card.md").read_bytes()).hexdigest()
    write_yaml(ensemble_copy / "ensemble.yaml", {**record, "card": {"file": "card.md", "sha256": sha256}})
    return ensemble_copy


@pytest.mark.timeout(180)
def test_both_pages_ask_for_the_token_and_send_it(synthetic, clips, tmp_path):
    token = "a token of this test".replace(" ", "-")
    app = create_app(synthetic, Limits(), measures=tmp_path / "measures", token_sha256=token_hash(token), threads=1)
    says, fault = "document.body.innerText", "document.getElementById('fault').textContent"

    async def visit(url):
        async with opened(url, tmp_path / "profile") as tab:
            await tab.until("document.getElementById('token').checkVisibility()")
            before = [await tab.value(says)]
            await tab.give("#file", clips[0])
            await tab.until(says + ".includes('Waiting for the token')")
            await tab.enter("#token input", "another-token")
            wrong = [await tab.until(fault)]
            await tab.enter("#token input", token)  # sends the clip that waits, too
            said = await tab.until(_SAID)
            after, shown = await tab.value(says), await tab.value(_SHOWN)
            await tab.value("document.querySelector('#card summary').click()")
            card = await tab.until("document.querySelector('#card pre').textContent")
            await tab.value("document.querySelector('a[href=docs]').click()")  # the same tab: it knows the token
            await tab.until("document.querySelectorAll('.opblock').length >= 5")
            await tab.value("sessionStorage.clear(); location.reload()")
            await tab.until("document.getElementById('token')?.checkVisibility()")
            before.append(await tab.value(says))
            await tab.enter("#token input", "another-token")
            wrong.append(await tab.until(fault))
            await tab.enter("#token input", token)
            await tab.until("document.querySelectorAll('.opblock').length >= 5")
            for button in ("#operations-default-model_v1_model_get .opblock-summary-control", ".try-out__btn", ".execute"):
                await tab.until(f"Boolean(document.querySelector('{button}'))")
                await tab.value(f"document.querySelector('{button}').click()")
            tried = await tab.until("document.querySelector('.live-responses-table')?.innerText")
            kept = await tab.value("[location.href, document.cookie, JSON.stringify(localStorage)]")
            return before, wrong, said, after, shown, card, tried, kept, tab.faults

    with listening(app) as url:
        before, wrong, said, after, shown, card, tried, kept, faults = asyncio.run(visit(url))
    note = "Trained on synthetic speech"
    for page in before:
        assert "Token of this server" in page
        assert not any(word in page for word in (note, "Model card", "/v1/predict", "high"))
    assert wrong == ["This is not the token of this server."] * 2
    assert said.endswith("% sure")
    assert note in after
    assert "Model card" in after
    assert "token" not in shown
    assert note in card
    assert "## How well it does" in card
    assert "200" in tried
    assert "raysere.model/1" in tried
    assert token not in " ".join(kept)
    assert {json.dumps(one) for one in faults if "401" not in str(one)} == set()
