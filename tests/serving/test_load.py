"""Under load: batches, refusals, time limits, decoders that die, and a change of the ensemble while
requests come.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time

import pytest
import yaml
from live import running, submitted

from raysere.base.errors import ConfigError, DataError
from raysere.serving.batching import Batcher
from raysere.serving.decoding import Decoder
from raysere.serving.engine import Engine, segments
from raysere.serving.faults import Fault
from raysere.serving.latency import Latency
from raysere.serving.limits import Limits, read_limits


def _batched(scenario, work, **limits):
    """Run ``scenario(batcher)`` in a loop of its own."""

    async def main():
        batcher = Batcher(work, Limits(**limits))
        try:
            return await scenario(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


def test_what_waits_is_answered_together_and_in_order():
    sizes, gate = [], threading.Event()

    def work(items):
        sizes.append(len(items))
        gate.wait(5)
        return [item * 10 for item in items]

    async def scenario(batcher):
        first = asyncio.create_task(submitted(batcher, [1], 0.1))
        while not sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(submitted(batcher, [n, n + 100], 0.1)) for n in range(2, 7)]
        await asyncio.sleep(0.01)
        gate.set()
        return await asyncio.gather(first, *others)

    answers = _batched(scenario, work, batch_items=6, batch_s=60, wait_s=60)
    assert answers == [[10], *([n * 10, n * 10 + 1000] for n in range(2, 7))]
    assert sizes == [1, 6, 4]


def test_a_batch_takes_no_longer_than_its_budget():
    sizes, gate = [], threading.Event()

    def work(items):
        sizes.append(len(items))
        gate.wait(5)
        return items

    async def scenario(batcher):
        first = asyncio.create_task(submitted(batcher, [0], 1.0))
        while not sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(submitted(batcher, [n], 1.0)) for n in range(8)]
        await asyncio.sleep(0.01)
        batcher.latency = Latency([(1.0, 0.25)])  # a clip of one second costs half a second
        batcher.latency.learn = lambda units, seconds: None
        gate.set()
        await asyncio.gather(first, *others)

    _batched(scenario, work, batch_s=1.0, wait_s=100)
    assert sizes == [1, 2, 2, 2, 2]


def test_too_much_is_refused_at_once_and_says_when_to_come_back():
    gate = threading.Event()

    def work(items):
        gate.wait(5)
        return items

    async def scenario(batcher):
        taken = [asyncio.create_task(submitted(batcher, [0], 0.0))]
        await asyncio.sleep(0.05)
        taken += [asyncio.create_task(submitted(batcher, [n], 0.0)) for n in range(1, 5)]
        await asyncio.sleep(0.05)
        with pytest.raises(Fault) as full:
            await submitted(batcher, [9], 0.0)
        batcher.latency = Latency([(1.0, 10.0)])
        with pytest.raises(Fault) as slow:
            batcher.admit(0)
        gate.set()
        await asyncio.gather(*taken)
        assert await submitted(batcher, [9], 0.0) == [9]
        return full.value, slow.value

    full, slow = _batched(scenario, work, queue=4, batch_items=1)
    assert (full.status, full.code) == (slow.status, slow.code) == (429, "overloaded")
    assert full.retry_s >= 1
    assert slow.retry_s > 20


def test_a_request_that_nobody_answers_in_time_is_told_so_and_leaves_the_queue():
    gate = threading.Event()
    seen = []

    def work(items):
        seen.extend(items)
        gate.wait(5)
        return items

    async def scenario(batcher):
        both = [asyncio.create_task(submitted(batcher, [n], 0.0)) for n in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert batcher.waiting == 0
        gate.set()
        return found

    found = _batched(scenario, work, request_s=0.1, batch_items=1)
    assert [fault.status for fault in found] == [504, 504]
    assert seen == [0]


def test_one_request_that_breaks_the_model_breaks_no_other():
    def work(items):
        if -1 in items:
            raise RuntimeError("out of order")
        return items

    async def scenario(batcher):
        return await asyncio.gather(*(submitted(batcher, [n], 0.0) for n in (1, -1, 2)), return_exceptions=True)

    one, broken, two = _batched(scenario, work)
    assert (one, two) == ([1], [2])
    assert isinstance(broken, RuntimeError)


def test_closing_answers_what_was_accepted():
    def work(items):
        time.sleep(0.05)
        return items

    async def main():
        batcher = Batcher(work, Limits(batch_items=1))
        waiting = [asyncio.create_task(submitted(batcher, [n], 0.0)) for n in range(4)]
        await asyncio.sleep(0.01)
        await batcher.close()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [[0], [1], [2], [3]]


def test_a_decoder_that_dies_is_replaced(kept, clips):
    data = clips[0].read_bytes()

    async def main():
        decoder = Decoder(Limits())
        try:
            (first,) = await decoder.decode([data], kept)
            (victim,) = decoder._pool._processes
            os.kill(victim, signal.SIGKILL)
            again = await decoder.decode([data] * 3, kept)
            return first, again
        finally:
            decoder.close()

    first, again = asyncio.run(main())
    assert {clip.seconds for clip in again} == {first.seconds} == {0.6}
    assert len({clip.path for clip in [first, *again]}) == 4


def test_decoding_that_takes_too_long_is_ended(kept, clips):
    async def main():
        decoder = Decoder(Limits(decode_s=1e-6))
        try:
            return await decoder.decode([clips[0].read_bytes()], kept)
        finally:
            decoder.close()

    (fault,) = asyncio.run(main())
    assert (fault.status, fault.code) == (422, "audio_unusable")


def test_changing_over_to_another_ensemble_loses_no_request(ensemble_copy, tmp_path, clips, monkeypatch):
    monkeypatch.setattr("raysere.serving.engine._LOOK_S", 0.05)
    monkeypatch.setattr("raysere.serving.engine._AGAIN_S", 0.2)
    data = clips[0].read_bytes()

    def write(folder, change):
        record = yaml.safe_load((folder / "ensemble.yaml").read_text())
        change(record)
        new = folder.parent / "new"
        shutil.copytree(folder, new)
        (new / "ensemble.yaml").write_text(yaml.safe_dump(record))
        os.rename(folder, folder.parent / f"old-{time.monotonic_ns()}")
        os.rename(new, folder)

    def ask(client):
        response = client.post("/v1/predict", files={"file": ("a", data)})
        assert response.status_code == 200, response.text
        return response.json()

    def until(condition):
        deadline = time.monotonic() + 120
        while not condition(answer := ask(client)):
            assert time.monotonic() < deadline
        return answer

    with running(ensemble_copy, tmp_path) as client:
        before = ask(client)
        write(ensemble_copy, lambda record: record.update(runs=["another"]))
        after = until(lambda answer: answer["model"] != before["model"])
        assert after["probabilities"] == before["probabilities"]
        assert client.get("/v1/model").json()["runs"] == ["another"]
        write(ensemble_copy, lambda record: record["members"][0].update(sha256="0" * 64))
        engine = client.app.state.engine
        until(lambda answer: engine.refused)
        assert ask(client)["model"] == after["model"]
        assert engine.swaps == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda record: next(iter(record["features"].values()))["spec"].update(identity="0" * 16), ConfigError, "not the one"),
        (lambda record: record["members"][0].update(sha256="0" * 64), DataError, "was changed"),
        (lambda record: record["card"].update(sha256="0" * 64), DataError, "was changed"),
        (lambda record: record["card"].update(file="../../secret.md"), DataError, "outside its folder"),
    ],
)
def test_an_ensemble_that_is_not_what_it_says_is_refused(ensemble_copy, change, error, words):
    record = yaml.safe_load((ensemble_copy / "ensemble.yaml").read_text())
    change(record)
    (ensemble_copy / "ensemble.yaml").write_text(yaml.safe_dump(record))

    async def main():
        engine = Engine(ensemble_copy, Limits())
        try:
            await engine.open()
        finally:
            await engine.close()

    with pytest.raises(error, match=words):
        asyncio.run(main())


def test_segments_cover_the_clip():
    limits = Limits(segment_s=2.0, segments=5)
    assert segments(1.5, limits) == [(0, 1.5)]
    assert segments(4.0, limits) == [(0, 2), (1, 3), (2, 4)]
    assert segments(4.5, limits) == [(0, 2), (1, 3), (2, 4), (2.5, 4.5)]
    long = segments(100.0, limits)
    assert len(long) == 5
    assert (long[0][0], long[-1][1]) == (0, 100)


def test_a_limit_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="audio_s"):
        read_limits({"audio_s": "-1"})
    with pytest.raises(ConfigError, match="audio_m"):
        read_limits({"audio_m": "1"})
    assert read_limits({"body_mb": "1.5"}).body_bytes == 1.5 * (1 << 20)
