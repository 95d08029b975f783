"""Decoder processes, the queue and the change of the ensemble, each by itself."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from live import running, submitted
from starlette.testclient import TestClient

from raysere.base.errors import DataError
from raysere.serving import batching, decoding
from raysere.serving import model as serving_model
from raysere.serving.app import create_app
from raysere.serving.batching import Batcher
from raysere.serving.decoding import Clip, Decoder
from raysere.serving.faults import Fault
from raysere.serving.latency import Latency
from raysere.serving.limits import Limits
from raysere.serving.model import Asked, Given, Model, ModelApart

# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "allowed", "refused", "code"),
    [
        ("seconds", {"seconds": 10.0}, {"seconds": 10.1}, "audio_too_long"),
        ("channels", {"channels": 2}, {"channels": 3}, "channels"),
        ("rate", {"rate": 8000}, {"rate": 7999}, "sampling_rate"),
        ("rate", {"rate": 48000}, {"rate": 48001}, "sampling_rate"),
        ("samples", {"frames": 500, "channels": 2}, {"frames": 501, "channels": 2}, "audio_too_long"),
    ],
)
def test_a_clip_may_be_as_large_as_its_limits(what, allowed, refused, code):
    limits = Limits(audio_s=10, channels=2, rate_low=8000, rate_high=48000, samples=1000)
    header = {"seconds": 1.0, "rate": 16000, "channels": 1, "frames": 10}
    decoding._check(**header | allowed, limits=limits)
    with pytest.raises(Fault) as caught:
        decoding._check(**header | refused, limits=limits)
    assert caught.value.code == code


def _decoded(data, folder, limits):
    """Both steps of a decoder process, in this one; the files are there already."""
    upload, target = folder / "upload", folder / "a.wav"
    upload.touch()
    target.touch()
    return decoding._decode(upload, target, decoding._look(data, upload, limits), limits)


def test_decoding_makes_no_file_and_leaves_no_alarm(tmp_path, clips):
    clip = _decoded(clips[0].read_bytes(), tmp_path, Limits())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "upload"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # which would end the process later, at another's clip or at none
    assert clip.path == str(tmp_path / "a.wav")
    for data in (b"none", bytes(0)):
        with pytest.raises(Fault):
            _decoded(data, tmp_path, Limits())
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    upload = tmp_path / "upload"
    info = decoding._look(clips[0].read_bytes(), upload, Limits())
    for path in tmp_path.iterdir():
        path.unlink()  # as when the request ends before
    with pytest.raises(FileNotFoundError):
        decoding._look(clips[0].read_bytes(), upload, Limits())
    with pytest.raises(Fault):
        decoding._decode(upload, tmp_path / "a.wav", info, Limits())
    assert not list(tmp_path.iterdir())


def test_a_header_that_says_too_much_is_refused_before_samples_are_read(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(decoding, "read_channels", None)
    with pytest.raises(Fault) as caught:
        _decoded(clips[0].read_bytes(), tmp_path, Limits(audio_s=0.5))
    assert caught.value.code == "audio_too_long"


@pytest.mark.parametrize("error", [MemoryError, ValueError, OverflowError])
def test_what_breaks_the_reader_is_a_fault_of_the_audio(tmp_path, clips, monkeypatch, error):
    def broken(*arguments):
        raise error("/place/of/somebody/secret")

    monkeypatch.setattr(decoding, "read_channels", broken)
    with pytest.raises(Fault) as caught:
        _decoded(clips[0].read_bytes(), tmp_path, Limits())
    assert (caught.value.status, caught.value.code) == (422, "audio_unusable")
    assert "secret" not in caught.value.message


def test_a_fault_comes_whole_from_a_decoder_process(kept, clips):
    async def main():
        decoder = Decoder(Limits(audio_s=0.5))
        try:
            return await decoder.decode([None, clips[0].read_bytes()], kept)
        finally:
            decoder.close()

    nothing, fault = asyncio.run(main())
    assert nothing is None
    assert (fault.status, fault.code, fault.remedy) == (413, "audio_too_long", "Cut it.")


def test_decoder_processes_are_bounded_and_end_also_when_they_hang():
    decoder = Decoder(Limits(decoder_mb=4096))
    pool = decoder._pool = decoder._new(1)
    assert pool.submit(resource.getrlimit, resource.RLIMIT_AS).result(60) == (4096 << 20, 4096 << 20)
    assert pool.submit(resource.getrlimit, resource.RLIMIT_CORE).result(60) == (0, 0)
    assert pool.submit(signal.getsignal, signal.SIGINT).result(60) == signal.SIG_IGN  # Ctrl-C is for the server, which answers first
    hung = pool.submit(time.sleep, 600)
    while not hung.running():  # what has not begun is only taken back
        time.sleep(0.01)
    processes = [psutil.Process(number) for number in pool._processes]
    decoder.close()
    assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_the_process_of_a_second_try_is_ended(kept, clips):
    made, data = [], clips[0].read_bytes()

    async def main():
        decoder = Decoder(Limits())
        new = decoder._new
        decoder._new = lambda count: made.append(new(count)) or made[-1]
        await decoder.decode([data], kept)
        os.kill(next(iter(made[0]._processes)), signal.SIGKILL)
        await decoder.decode([data], kept)
        decoder.close()

    asyncio.run(main())
    _, alone, _ = made  # the third is for all that comes after
    with pytest.raises(RuntimeError, match="after shutdown"):  # it is not broken
        alone.submit(os.getpid)


# --- the queue ------------------------------------------------------------------------------------


class _Gated:
    """Work of which each batch waits until it is let go on; ``batches`` are those that began."""

    def __init__(self):
        self.batches, self._let = [], threading.Semaphore(0)

    def let(self, count=1):
        self._let.release(count)

    def __call__(self, items):
        self.batches.append(list(items))
        assert self._let.acquire(timeout=60)
        return [item * 10 for item in items]

    async def began(self, count=1):
        while len(self.batches) < count:
            await asyncio.sleep(0.001)


async def _waits(batcher, items, audio_s=0.0):
    """A task whose items wait."""
    before = batcher.waiting
    task = asyncio.create_task(submitted(batcher, items, audio_s))
    while batcher.waiting == before:
        await asyncio.sleep(0)
    return task


def test_a_request_that_is_given_up_moves_no_answer_of_its_batch():
    async def main():
        work = _Gated()
        batcher = Batcher(work, Limits(batch_s=60))
        first = asyncio.create_task(submitted(batcher, [0], 0.0))
        await work.began()
        gone, kept = await _waits(batcher, [1, 2]), await _waits(batcher, [3])
        work.let()
        await first
        await work.began(2)
        gone.cancel()  # its client went away while the model works on it
        await asyncio.gather(gone, return_exceptions=True)
        work.let()
        found = await kept
        await batcher.close()
        return work.batches, found

    assert asyncio.run(main()) == ([[0], [1, 2, 3]], [30])


def test_a_client_that_goes_away_leaves_the_queue_whatever_it_sent():
    async def main():
        work = _Gated()
        batcher = Batcher(work, Limits(batch_items=1))
        first = asyncio.create_task(submitted(batcher, [np.zeros(3)], 0.0))
        await work.began()
        same = [await _waits(batcher, [np.zeros(3)]) for _ in range(2)]  # arrays cannot be told apart by ==
        same[1].cancel()
        await asyncio.gather(same[1], return_exceptions=True)
        waiting = batcher.waiting
        work.let(9)
        await asyncio.gather(first, same[0])
        await batcher.close()
        return waiting, len(work.batches)

    assert asyncio.run(main()) == (1, 2)


def _paced(fixed, slope):
    """A pace that learns nothing."""
    latency = Latency([(0.0, fixed), (1.0, fixed + slope)])
    latency.learn = lambda units, seconds: None
    return latency


@pytest.fixture
def clock(monkeypatch):
    """The batcher's time, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_expected_wait_is_until_all_is_done_that_is_here(clock):
    async def main():
        work, learned = _Gated(), []
        batcher = Batcher(work, Limits(batch_s=100))
        batcher.latency = _paced(1.0, 0.5)
        batcher.latency.learn = lambda units, seconds: learned.append((units, seconds))
        assert batcher.expected_wait() == 0
        first = asyncio.create_task(submitted(batcher, [0], 9.0))  # 10 units: one item and 9 s of audio
        await work.began()
        seconds = [batcher.expected_wait()]
        clock[0] += 2  # of the 6 that are expected
        seconds.append(batcher.expected_wait())
        others = [await _waits(batcher, [1], 4.0), await _waits(batcher, [2], 4.0)]
        seconds.append(batcher.expected_wait())
        batcher.limits = Limits(batch_s=100, batch_items=1)  # a batch each
        seconds.append(batcher.expected_wait())
        clock[0] += 8  # 10 already
        seconds.append(batcher.expected_wait())
        work.let(9)
        await asyncio.gather(first, *others)
        seconds.append(batcher.expected_wait())
        await batcher.close()
        return seconds, learned

    seconds, learned = asyncio.run(main())
    assert seconds == [6, 4, 4 + (1 + 0.5 * 10), 4 + 2 * (1 + 0.5 * 5), 4 + 2 * (1 + 0.5 * 5), 0]
    assert learned == [(10, 10), (5, 0), (5, 0)]


def test_a_wait_that_is_too_long_is_refused_unless_hardly_anything_waits(clock):
    async def main():
        work = _Gated()
        batcher = Batcher(work, Limits(wait_s=2, batch_items=1))
        batcher.latency = _paced(1.0, 0.0)
        tasks = [asyncio.create_task(submitted(batcher, [0]))]
        await work.began()
        tasks += [await _waits(batcher, [n]) for n in range(4)]  # 5 s, but never more than three waited
        with pytest.raises(Fault) as refused:
            batcher.admit(1)
        batcher.limits = Limits(wait_s=5, batch_items=1)
        batcher.admit(1)
        batcher.limits = Limits(wait_s=4.9, batch_items=1)
        with pytest.raises(Fault):
            batcher.admit(1)
        work.let(9)
        await asyncio.gather(*tasks)
        await batcher.close()
        return refused.value

    fault = asyncio.run(main())
    assert (fault.status, fault.code, fault.retry_s) == (429, "overloaded", 5 - 2 / 2)


def test_a_request_that_is_read_holds_its_place_for_a_while(clock):
    async def main():
        batcher = Batcher(lambda items: items, Limits(queue=4))
        batcher.latency = _paced(1.0, 0.5)
        with batcher.place(1) as place:
            alone = batcher.waiting, batcher.expected_wait()
            batcher.enlarge(place, 3)
            batcher.admit(1)
            with pytest.raises(Fault):
                batcher.admit(2)
            with pytest.raises(Fault):
                batcher.enlarge(place, 5)
            three = batcher.waiting, batcher.expected_wait()
            assert await batcher.submit([1, 2, 3], 17.0, place) == [1, 2, 3]  # 20 units
            assert batcher.waiting == 0
        with batcher.place(1) as place:
            later = batcher.expected_wait()  # an item of late was more work
            clock[0] += 1.9
            fresh = batcher.waiting
            clock[0] += 0.2
            stale = batcher.waiting, batcher.expected_wait()
        with pytest.raises(RuntimeError), batcher.place(4):
            raise RuntimeError("a body that cannot be read")
        assert batcher.waiting == 0
        await batcher.close()
        return alone, three, later, fresh, stale

    alone, three, later, fresh, stale = asyncio.run(main())
    assert (alone, three) == ((1, 1 + 0.5 * 4), (3, 1 + 0.5 * 12))
    assert later == pytest.approx(1 + 0.5 * (4 + 0.1 * (20 / 3 - 4)))
    assert (fresh, stale) == (1, (0, 0))


def test_closing_waits_for_what_is_still_read():
    async def main():
        batcher = Batcher(lambda items: items, Limits())
        with batcher.place(1) as place:
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.05)
            answer = await batcher.submit([1], 0.0, place)
        await closing
        return answer

    assert asyncio.run(main()) == [1]


def test_the_pace_of_batches_is_a_line_times_the_load_of_late():
    latency = Latency([(4, 0.05), (64, 0.35), (4, 0.05)])
    assert (latency.fixed, latency.slope, latency.load) == (pytest.approx(0.03), pytest.approx(0.005), 1)
    assert (latency.seconds(0), latency.seconds(10)) == (0, pytest.approx(0.08))
    latency.learn(10, 0.24)  # three times as long
    assert latency.seconds(10) == pytest.approx((1 + 0.1 * 2) * 0.08)
    for _ in range(200):
        latency.learn(2, 0.08)  # twice as long, whatever the size
    assert (latency.seconds(2), latency.seconds(34)) == (pytest.approx(0.08), pytest.approx(0.4))
    assert (latency.calm(34), latency.fixed, latency.slope) == (pytest.approx(0.2), pytest.approx(0.03), pytest.approx(0.005))


def test_no_part_of_the_pace_is_negative():
    assert Latency().seconds(10) == pytest.approx(1.0)
    for tried, fixed, slope in (
        ([(1, 0.9), (9, 0.1)], 0.5, 0.0),  # the larger one took less
        ([(1, 1.0), (9, 81.0)], 0.0, 41 / 5),  # the line would begin below nothing
        ([(4, 0.4), (4, 0.8)], 0.0, 0.15),  # one size tells of no fixed part
    ):
        latency = Latency(tried)
        assert (latency.fixed, latency.slope) == (pytest.approx(fixed), pytest.approx(slope))


def test_a_batch_is_limited_by_its_time_on_a_calm_machine(clock):
    batcher = Batcher(lambda items: items, Limits(batch_s=1.0, batch_items=10))
    batcher.latency = Latency([(0.0, 0.1), (1.0, 0.2)])
    requests = [(1, 2.0)] * 20
    assert batcher._fitting(requests) == 4
    batcher.latency.load = 5.0  # smaller batches would make it slower still
    assert batcher._fitting(requests) == 4
    assert batcher._fitting([(1, 90.0), (1, 1.0)]) == 1
    assert batcher._fitting([(20, 1.0), (1, 1.0)]) == 1
    assert batcher._fitting([(5, 1.0), (5, 1.0), (1, 1.0)]) == 2
    assert batcher._fitting([]) == 0


def test_for_how_long_there_is_no_room(clock):
    async def full(wait_s, running):
        work = _Gated()
        batcher = Batcher(work, Limits(wait_s=wait_s, batch_items=1))
        batcher.latency = _paced(running, 0.0)
        tasks = [asyncio.create_task(submitted(batcher, [0]))]
        await work.began()
        tasks += [await _waits(batcher, [n]) for n in range(4)]
        with pytest.raises(Fault) as refused:
            batcher.admit(1)
        work.let(9)
        await asyncio.gather(*tasks)
        await batcher.close()
        return refused.value.full_s

    assert asyncio.run(full(1.0, 0.22)) == pytest.approx(5 * 0.22 - 0.75)
    assert asyncio.run(full(1.0, 10.0)) == 0.5


def test_the_queue_counts_items():
    async def main():
        work = _Gated()
        batcher = Batcher(work, Limits(queue=3, batch_items=1))
        first = asyncio.create_task(submitted(batcher, [0], 0.0))
        await work.began()
        others = [await _waits(batcher, [1, 2])]
        with pytest.raises(Fault):
            batcher.admit(2)
        others.append(await _waits(batcher, [3]))  # as many as may wait
        with pytest.raises(Fault):
            batcher.admit(1)
        work.let(9)
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(main())


def test_closing_answers_what_has_not_even_begun():
    async def main():
        batcher = Batcher(lambda items: items, Limits(request_s=5))
        task = await _waits(batcher, [1])
        await batcher.close()
        return await task

    assert asyncio.run(main()) == [1]


# --- changing over --------------------------------------------------------------------------------


def _replace(folder, change=lambda folder, record: None):
    """Another ensemble in the place of the one in ``folder``, as saving does it."""
    new = folder.parent / "new"
    shutil.copytree(folder, new)
    record = yaml.safe_load((new / "ensemble.yaml").read_text())
    record["runs"] = [f"run {time.monotonic_ns()}"]
    change(new, record)
    (new / "ensemble.yaml").write_text(yaml.safe_dump(record))
    os.rename(folder, folder.parent / f"old-{time.monotonic_ns()}")
    os.rename(new, folder)


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def changing(ensemble_copy, tmp_path, monkeypatch):
    monkeypatch.setattr("raysere.serving.engine._LOOK_S", 0.05)
    monkeypatch.setattr("raysere.serving.engine._AGAIN_S", 0.2)
    with running(ensemble_copy, tmp_path) as client:
        yield client, client.app.state.engine, ensemble_copy


def _model(client):
    return client.post("/v1/predict", json={"text": "lost again"}).json()["model"]


def test_the_old_ensemble_answers_while_the_new_one_is_opened(changing, monkeypatch):
    client, engine, folder = changing
    load, opening, go_on, told = engine._load, threading.Event(), threading.Event(), []

    def slow():
        opening.set()
        told.append(go_on.wait(60))
        return load()

    monkeypatch.setattr(engine, "_load", slow)
    before = _model(client)
    _replace(folder)
    assert opening.wait(60)
    assert _model(client) == before
    go_on.set()
    _until(lambda: _model(client) != before)
    assert told == [True]  # the answer came while it was opened, not after


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), OSError("the share is away")])
def test_whatever_keeps_a_new_ensemble_from_opening_the_next_look_is_taken(changing, monkeypatch, caplog, error):
    client, engine, folder = changing
    load, tries = engine._load, []

    def fails():
        tries.append(1)
        if len(tries) <= 3:
            raise error
        return load()

    monkeypatch.setattr(engine, "_load", fails)
    before = _model(client)
    _replace(folder)
    _until(lambda: engine.refused)
    assert _model(client) == before
    _until(lambda: _model(client) != before)  # the same one, tried again
    assert sum("is refused" in line.message for line in caplog.records) == 1  # said once
    assert (engine.swaps, engine.refused) == (1, None)


def test_the_old_model_ends_when_it_has_answered_and_not_before(changing, monkeypatch):
    client, engine, folder = changing
    old, answering, go_on, closed = engine.model, threading.Event(), threading.Event(), []
    answer = old.answer

    def slow(asked):
        answering.set()
        assert go_on.wait(60)
        assert not closed
        return answer(asked)

    monkeypatch.setattr(old, "answer", slow)
    monkeypatch.setattr(old, "close", lambda: closed.append(1))
    told = []
    asking = threading.Thread(target=lambda: told.append(_model(client)))
    asking.start()
    assert answering.wait(60)
    before = engine.bundle.fingerprint
    load, loaded = engine._load, threading.Event()
    monkeypatch.setattr(engine, "_load", lambda: (load(), loaded.set())[0])
    _replace(folder)
    assert loaded.wait(60)
    time.sleep(0.2)  # it is open, and waits for the old one
    assert (engine.model is old, closed) == (True, [])
    go_on.set()
    asking.join(60)
    assert told == [before]
    _until(lambda: engine.swaps == 1)
    assert closed == [1]
    assert engine.batcher.latency.load == 1  # what was known of the old one's pace says nothing of the new


# --- a process of its own -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(real_run):
    model = ModelApart(real_run["folder"] / "ensemble", threads=1)
    yield model
    model.close()


def _child(model):
    (number,) = model._pool._processes
    return psutil.Process(number)


def test_a_model_apart_gives_the_same_answers(real_run, clips, apart):
    here = Model(real_run["folder"] / "ensemble")
    clip = Clip(str(clips[0]), 0.6, 16000, 1)
    asked = [Asked(clip, Given(text="lost again"), None, None, True), Asked(None, Given(text="a"), None, None, False)]
    assert apart.answer(asked) == here.answer(asked)
    assert apart.bundle.fingerprint == here.bundle.fingerprint
    assert [(count, audio) for count, audio, _ in apart.tried] == [(1, 2.0), (8, 16.0)] * 2
    assert all(took > 0 for *_, took in apart.tried)
    assert _child(apart).pid != os.getpid()


def test_a_slow_model_is_not_tried_for_long(monkeypatch):
    now, tried = [0.0], []
    model = object.__new__(Model)
    model.ensemble = SimpleNamespace(modalities=["text"])
    monkeypatch.setattr(serving_model, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def answer(asked):
        tried.append(len(asked))
        now[0] += 2.0 * len(asked)

    monkeypatch.setattr(model, "answer", answer)
    assert model._try() == [(1, 0.0, 2.0)]
    assert tried == [1, 1]  # after 4 s there is an end
    monkeypatch.setattr(model, "answer", lambda asked: now.__setitem__(0, now[0] + 0.1 * len(asked)))
    assert [count for count, *_ in model._try()] == [1, 8, 1, 8]


def test_work_that_fails_at_once_does_not_make_the_pace_quicker():
    async def main():
        def work(items):
            raise RuntimeError("out of order")

        batcher = Batcher(work, Limits())
        await asyncio.gather(*(submitted(batcher, [n]) for n in range(3)), return_exceptions=True)
        await batcher.close()
        return batcher.latency.load

    assert asyncio.run(main()) == 1


def test_a_request_too_large_for_the_queue_keeps_no_other_out():
    batcher = Batcher(lambda items: items, Limits(queue=4, wait_s=100))
    with pytest.raises(Fault) as refused:
        batcher.admit(5)
    assert refused.value.full_s == 0


def test_why_a_model_apart_does_not_open_is_told_as_it_is_here(ensemble_copy):
    record = yaml.safe_load((ensemble_copy / "ensemble.yaml").read_text())
    record["members"][0].update(sha256="0" * 64)
    (ensemble_copy / "ensemble.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(DataError, match="was changed") as caught:
        ModelApart(ensemble_copy)
    assert caught.value.where


def test_a_model_whose_process_dies_is_told_by_the_checks(real_run, tmp_path):
    app = create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures", threads=1, apart=True)
    with TestClient(app) as client:
        assert client.post("/v1/predict", json={"text": "lost again"}).status_code == 200
        engine = client.app.state.engine
        engine.check()
        _child(engine.model).kill()
        _until(lambda: not engine.model.alive)
        answer = client.post("/v1/predict", json={"text": "lost again"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == 503
        with pytest.raises(RuntimeError, match="died"):
            engine.check()


def test_a_model_s_process_ends_with_whoever_started_it(real_run):
    code = (
        "import sys, os, signal; from pathlib import Path; from raysere.serving.model import ModelApart\n"
        "if __name__ == '__main__':\n"
        "    model = ModelApart(Path(sys.argv[1]), threads=1)\n"
        "    print(*model._pool._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(real_run["folder"] / "ensemble")], capture_output=True, text=True, timeout=120, check=False
    )
    (number,) = done.stdout.split()
    _until(lambda: not psutil.pid_exists(int(number)))


def test_closing_a_model_ends_its_process(real_run):
    model = ModelApart(real_run["folder"] / "ensemble", threads=1)
    child = _child(model)
    model.close()
    assert psutil.wait_procs([child], timeout=60)[1] == []


def test_a_folder_that_is_gone_for_a_while_is_no_change(changing):
    client, _, folder = changing
    before = _model(client)
    away = folder.parent / "away"
    os.rename(folder, away)
    time.sleep(0.3)  # several looks
    assert _model(client) == before
    os.rename(away, folder)
    _replace(folder)
    _until(lambda: _model(client) != before)
