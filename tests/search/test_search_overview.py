"""The course of a search in event files, its columns, and the picture of layer weights, pixel by
pixel.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_search_ledger import put
from toy import toy_run, toy_study

from raysere.search.ledger import Ledger
from raysere.search.watch.overview import SearchEvents, experiment
from raysere.search.watch.pictures import weights_image


def test_a_resumed_search_goes_on_counting_and_is_seen_while_it_runs(tmp_path: Path) -> None:
    run_dir, study = toy_run(tmp_path), toy_study()
    records = [put(Ledger(run_dir), study, number, {"lr": 0.1}, score=score) for number, score in enumerate([0.9, 0.3, 0.4])]
    failed = put(Ledger(run_dir), study, 3, {"lr": 0.1}, status="infeasible", score=None)
    (run_dir / "search" / study.name).mkdir(parents=True, exist_ok=True)
    events = SearchEvents(run_dir, "stamp", records[:2])
    for moment, record in enumerate([records[2], failed]):
        events.finished(record, 100.0 + 15 * moment)
    shown = {}
    for run, tag in ((study.name, "search/best_score"), ("", "search/trials_per_minute")):
        accumulator = EventAccumulator(str(run_dir / "search" / run))  # the files are open still
        accumulator.Reload()
        shown[tag] = [(event.step, round(event.value, 6)) for event in accumulator.Scalars(tag)]
    events.close()
    assert shown == {"search/best_score": [(3, 0.9), (4, 0.9)], "search/trials_per_minute": [(4, 4.0)]}


def test_a_default_outside_of_the_domain_widens_the_column() -> None:
    study = toy_study()
    space = {**study.space, "defaults": {**study.space.get("defaults", {}), "lr": 0.5, "hidden": 64}}
    wide = study.model_copy(update={"space": space})
    infos = {info.name: info for info in experiment([wide]).hparam_infos}
    assert infos["lr"].domain_interval.max_value == 0.5  # or the page hides a trial that has it
    assert 64.0 in [value.number_value for value in infos["hidden"].domain_discrete.values]


def test_the_first_layer_is_at_the_bottom_and_its_name_beside_it() -> None:
    picture = weights_image(np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]), ["WWW", "", ""])
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
    assert pixels.shape == (picture.height, picture.width, 3)
    left, top, wide, high = 62, 30, 28, 28
    shades = [[pixels[top + high * row + 5, left + wide * column + 5].sum() for column in range(2)] for row in range(3)]
    assert shades[2][0] == shades[0][1] < 3 * 130 < 3 * 200 < min(shades[0][0], shades[1][0], shades[1][1], shades[2][1])
    inked = [(pixels[top + high * row : top + high * (row + 1), : left - 4].sum(-1) < 3 * 120).any() for row in range(3)]
    assert inked == [False, False, True]
