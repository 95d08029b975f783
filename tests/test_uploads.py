"""Inputs for tests of the server: they depend on their seed alone."""

from __future__ import annotations

import random

from raysere.testing.uploads import mutated, seeds, wrong_body


def test_a_wrong_body_does_not_depend_on_those_made_before():
    first = [wrong_body(random.Random(number)) for number in range(400)]
    assert [wrong_body(random.Random(number)) for number in range(400)] == first
    assert len(set(first)) > 200


def test_a_mutated_upload_does_not_depend_on_those_made_before():
    originals = list(seeds().values())
    first = [mutated(originals[number % len(originals)], random.Random(number)) for number in range(100)]
    assert [mutated(originals[number % len(originals)], random.Random(number)) for number in range(100)] == first
