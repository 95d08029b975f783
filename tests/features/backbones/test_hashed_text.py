"""Hashed n-grams: counted right, the same on every machine, in languages with and without blanks."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysere.base.errors import ConfigError, DataError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.features.backbones.hashed_text import terms, tokens
from raysere.testing.backbone import check_backbone


def count(text: str, **options: int) -> np.ndarray:
    return open_backbone("hashed", **options).encode([Item("a", text=text)], [0])[0][0][0]


def test_keeps_the_contract() -> None:
    check_backbone(open_backbone("hashed"))
    info = describe_backbone("hashed")
    assert (info.kind, info.modality, info.layers[0].dim, info.layers[0].rows) == ("counts", "text", 4096, "utterance")


def test_terms_are_words_pairs_and_characters_within_words() -> None:
    assert sorted(terms("No no!")) == sorted(["w:no", "w:no", "w:!", "p:no no", "p:no !"] + 2 * ["c: no", "c:no ", "c: no "] + ["c: ! "])


def test_every_term_is_counted_in_its_bin() -> None:
    row = count("No no!", bins=1 << 20)
    assert row[zlib.crc32(b"w:no") % (1 << 20)] == 2
    assert row[zlib.crc32(b"p:no no") % (1 << 20)] == 1
    assert row.sum() == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't SHOUT!", ["don't", "shout", "!"]),
        ("Perché? L’amore...", ["perché", "?", "l’amore", "..."]),
        ("你好吗？", ["你", "好", "吗", "?"]),
        ("Я очень рад", ["я", "очень", "рад"]),
        ("我 love 你", ["我", "love", "你"]),
        ("snake_case 42", ["snake", "case", "42"]),
        ("Straße", ["strasse"]),
    ],
)
def test_tokens_of_many_languages(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_characters_of_chinese_cross_words() -> None:
    found = list(terms("你今天好"))
    assert "p:今 天" in found
    assert "c:今天好" in found


def test_forms_of_one_text_are_one() -> None:
    assert np.array_equal(count("caf\u00e9"), count("CAFE\u0301"))


def test_the_hash_is_the_same_in_every_process() -> None:
    code = (
        "from raysere.features.backbones import open_backbone; from raysere.features.backbone import Item; "
        "print(open_backbone('hashed').encode([Item('a', text='so very happy')], [0])[0][0][0].nonzero()[0].tolist())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert results == {f"{count('so very happy').nonzero()[0].tolist()}\n"}


@given(st.text(max_size=60), st.sampled_from([16, 4096]))
def test_counts_add_up_for_any_text(text: str, bins: int) -> None:
    wanted = len(list(terms(text)))
    if wanted == 0:
        with pytest.raises(DataError):
            count(text, bins=bins)
    else:
        row = count(text, bins=bins)
        assert row.shape == (bins,)
        assert row.sum() == wanted


@pytest.mark.parametrize("text", [None, "", "  "])
def test_no_text_is_refused(text: str | None) -> None:
    with pytest.raises(DataError, match="no text"):
        open_backbone("hashed").encode([Item("a", text=text)], [0])


def test_options() -> None:
    assert describe_backbone("hashed?bins=512").layers[0].dim == 512
    assert describe_backbone("hashed?bins=512") == describe_backbone("hashed", bins=512)
    assert describe_backbone("hashed", bins=512).identity != describe_backbone("hashed").identity
    for wrong in (8, "many", -1, 1 << 30):
        with pytest.raises(ConfigError, match="bins"):
            describe_backbone("hashed", bins=wrong)
