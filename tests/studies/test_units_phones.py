"""Labels of EmoDB and of other corpora as phones: what belongs together, what is dropped, and what
becomes of broken files.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

from raysere.base.errors import DataError
from raysere.corpora.adapters import load_corpus
from raysere.corpora.ipa import ipa_phones, scheme_of, to_ipa, vowel_distance
from raysere.corpora.lablaut import parse_lablaut, read_lablaut

HEAD = "signal wochenAO\ntype 0\nseparator ;\nnfields 1\n#\n"
ROWS = """    0.080   -1 _t
    0.120   -1 !t\t+asp
    0.145   -1 E6
    0.350   -1 a\t\t2
    0.430   -1 p
    0.510   -1 !p\t+na
    0.520   -1 pasp
    0.700   -1 i
    0.770   -1 \t+hoe
    0.800   -1 (
    0.830   -1 n +sil
    0.840   -1 \t+sth
    0.900   -1 g-sth
    0.950   -1 a [+eng,+hoe
    1.000   -1 .
"""


def test_a_sound_is_one_phone_whatever_rows_it_takes() -> None:
    phones = parse_lablaut(HEAD + ROWS)
    assert [(phone["label"], phone["start_s"], phone["end_s"]) for phone in phones] == [
        ("t +asp", 0.08, 0.12),  # the closure after the pause is the pause
        ("E6", 0.12, 0.145),
        ("a 2", 0.145, 0.35),
        ("p", 0.35, 0.52),  # closure, burst, aspiration
        ("i", 0.52, 0.77),
        ("n +sil", 0.8, 0.84),
        ("g -sth", 0.84, 0.9),
        ("a +eng,+hoe", 0.9, 0.95),
    ]


def test_a_modifier_in_a_pause_makes_no_phone() -> None:
    assert parse_lablaut(HEAD + "  0.1 -1 .\n  0.2 -1 \t-sth\n  0.3 -1 a\n") == [{"label": "a", "start_s": 0.2, "end_s": 0.3}]


def test_what_is_no_label_file_says_so() -> None:
    with pytest.raises(DataError, match="no line '#'"):
        parse_lablaut("0.1 -1 a\n")
    with pytest.raises(DataError, match="no end time after"):
        parse_lablaut(HEAD + "  0.5 -1 a\n  0.4 -1 b\n")
    with pytest.raises(DataError, match="no end time after"):
        parse_lablaut(HEAD + "  soon -1 a\n")
    assert parse_lablaut(HEAD) == []


def _emodb(root: Path, names: list[str]) -> None:
    (root / "wav").mkdir(parents=True)
    for name in names:
        soundfile.write(root / "wav" / f"{name}.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16800).astype(np.float32), 16000)


def test_the_adapter_reads_labels_and_survives_bad_ones(tmp_path: Path) -> None:
    _emodb(tmp_path, ["03a01Fa", "03a01Na", "03a01Wa", "03a02Wa", "03a02Na"])
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        archive.writestr("lablaut/03a01Faxx.lablaut", HEAD + ROWS)
        archive.writestr("lablaut/03a01Na.lablaut", HEAD)  # an empty one and a whole one of the same utterance
        archive.writestr("lablaut/03a01Naxx.lablaut", (HEAD + "  0.2 -1 a\t+la\xdf\n").encode("latin-1"))
        archive.writestr("lablaut/03a01Waxx.lablaut", "broken")
        archive.writestr("lablaut/12a02Taxx.lablaut", HEAD + ROWS)  # no such audio
    loaded = load_corpus("emodb", tmp_path, columns=None, options={}).manifest
    phones = dict(zip(loaded.table["utterance"], loaded.table["phones"].to_list(), strict=True))
    assert {name.rsplit("/", 1)[1]: None if value is None else len(value) for name, value in phones.items()} == {
        "03a01Fa": 8,
        "03a01Na": 1,
        "03a01Wa": None,
        "03a02Wa": None,
        "03a02Na": None,
    }
    notes = " ".join(loaded.notes)
    assert "1 label files were left out; the first is 03a01Waxx.lablaut" in notes
    assert "3 of 5 utterances have no phonetic labels" in notes


def test_an_archive_that_is_none_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "labels.zip").write_bytes(b"nothing")
    found, faults = read_lablaut(tmp_path, {"03a01Fa"})
    assert found == {}
    assert "are not read: This is not a zip archive" in faults[0]


@pytest.mark.parametrize(
    ("label", "scheme", "ipa", "marks", "kind"),
    [
        ("AH0", "arpabet", "ə", "0", "vowel"),
        ("AH1", "arpabet", "ʌ", "1", "vowel"),
        ("EY2", "arpabet", "eɪ", "2", "diphthong"),
        ("NG", "arpabet", "ŋ", "", "consonant"),
        ("a +nas 1", "lablaut", "a", "+nas 1", "vowel"),
        ("aO", "lablaut", "aʊ", "", "diphthong"),
        ("nn", "lablaut", "n", "", "consonant"),
        ("i6", "lablaut", "iɐ", "", "diphthong"),
        ("ˈɔː", "ipa", "ɔ", "ˈː", "vowel"),
        ("ts.h", "ipa", "tʂʰ", "", "consonant"),
        ("i̪", "ipa", "ɿ", "", "vowel"),
        ("t̪", "ipa", "t", "", "consonant"),
        ("ˈja", "ipa", "ja", "ˈ", "diphthong"),
        ("a˥˩", "ipa", "a", "˥˩", "vowel"),
    ],
)
def test_labels_become_ipa(label: str, scheme: str, ipa: str, marks: str, kind: str) -> None:
    phone = to_ipa(label, scheme)
    assert phone is not None
    assert (phone.ipa, phone.marks, phone.kind) == (ipa, marks, kind)


@pytest.mark.parametrize(
    ("label", "scheme"), [("sil", "ipa"), ("SP", "arpabet"), ("<unk>", "ipa"), ("q%w", "ipa"), ("ʲ", "ipa"), ("", "lablaut")]
)
def test_silence_and_the_unknown_are_no_phones(label: str, scheme: str) -> None:
    assert to_ipa(label, scheme) is None


def test_the_way_of_writing_is_found() -> None:
    assert scheme_of(["AH0", "N", "EY1", "SH"]) == "arpabet"
    assert scheme_of(["I", "a +nas 1", "@", "!", "X"]) == "lablaut"
    assert scheme_of(["ˈɔː", "a", "n", "s."]) == "ipa"


def _table(corpus: str, language: str, labels: list[str]) -> pl.DataFrame:
    phones = [{"label": label, "start_s": 0.1 * place, "end_s": 0.1 * place + 0.1} for place, label in enumerate(labels)]
    return pl.DataFrame({"corpus": [corpus], "language": [language], "utterance": [f"{corpus}/1"], "phones": [phones]})


def test_a_palatalisation_joins_its_consonant_and_silence_stays_without_a_symbol() -> None:
    table = ipa_phones(pl.concat([_table("a", "ru", ["n", "ʲ", "ˈy", "sil", "ʲ"]), _table("b", "en", ["y", "n"])]))
    assert table.select("utterance", "ipa", "kind").rows() == [
        ("a/1", "nʲ", "consonant"),
        ("a/1", "ɨ", "vowel"),  # espeak's y in Russian
        ("a/1", None, None),
        ("a/1", None, None),
        ("b/1", "y", "vowel"),
        ("b/1", "n", "consonant"),
    ]
    assert table.row(0)[1:3] == pytest.approx((0.0, 0.2))


def test_articulatory_distance() -> None:
    assert vowel_distance("i", "i") == 0
    assert vowel_distance("i", "y") == pytest.approx(1 / 3)
    assert vowel_distance("i", "ɒ") == 1
    assert vowel_distance("i", "e") == vowel_distance("e", "i") < vowel_distance("i", "a")
