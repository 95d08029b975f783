"""Phone labels of corpora as IPA; tone, stress, length and voice are kept apart.

Three ways of writing are known. ``arpabet`` (``AH0``: forced aligners of English), ``lablaut``
(SAMPA-like, EmoDB) and ``ipa`` (with the ASCII habits of espeak). Diphthongs are phones of their
own; of a label only what distinguishes quality stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

Kind = Literal["vowel", "diphthong", "consonant"]

# height 0 close .. 6 open, backness 0 front .. 4 back, rounded: the IPA chart in steps (IPA
# Handbook, 1999)
_CHART = (
    "i000 y001 ɨ020 ʉ021 ɯ040 u041 ɪ110 ʏ111 ʊ131 e200 ø201 ɘ220 ɵ221 ɤ240 o241 ə320 ɚ320 ɛ400 œ401 ɜ420 ɝ420 ɞ421 ʌ440 ɔ441 "
    "æ500 ɐ520 a600 ɶ601 ɑ640 ɒ641 ɿ020 ʅ020"  # the last two: the apical vowels of Mandarin after alveolar and retroflex fricatives
)
VOWELS: dict[str, tuple[int, int, int]] = {entry[0]: (int(entry[1]), int(entry[2]), int(entry[3])) for entry in _CHART.split()}
_CONSONANTS = frozenset("pbtdʈɖcɟkɡqɢʔmɱnɳɲŋɴʙrʀⱱɾɽɸβfvθðszʃʒʂʐçʝxɣχʁħʕhɦɬɮʋɹɻjɰlɭʎʟɫwʍɥɕʑɺɧ")
_SILENCE = frozenset({"", "sil", "sp", "spn", "pau", "pause", "silence", "noise", "nsn", "<eps>", "_", ".", "#", "<p:>", "<unk>", "unk"})
_MARKS = re.compile("[ˈˌ'ːˑː˥˦˧˨˩↗↘0-9̯̩̃̆̚͜͡ ]")
_PALATAL = "ʲ"


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# espeak's ASCII habits (Mandarin, Russian); its Mandarin "onɡ" is one rime, whose nasal cannot be
# cut off
_ESPEAK = _pairs('s. ʂ ts. tʂ ts.h tʂʰ tsh tsʰ tɕh tɕʰ ph pʰ th tʰ kh kʰ i̪ ɿ i. ʅ o- ɤ u" ʉ ər ɚ əl l yæ yɛ ɪ^ ɪ onɡ ʊŋ')
_BY_LANGUAGE = {"ru": {"y": "ɨ"}}  # espeak writes y for the Russian ы, and the language has no front rounded vowel
# German SAMPA with the finer letters of EmoDB's labellers; R-like sounds as their contexts in the
# ten sentences show
_LABLAUT = {letter: letter for letter in "aeiouyptkbdmnlfvszjhx"} | _pairs(
    "I ɪ Y ʏ U ʊ E ɛ 9 œ O ɔ @ ə 6 ɐ A ɑ 8 ɵ 2 ø g ɡ ? ʔ N ŋ S ʃ Z ʒ C ç X χ 4 ʁ R ʀ B β D ð G ɣ V ʋ H ɦ L l J ʝ"
)
_LABLAUT_DIPHTHONGS = _pairs("ao aʊ au aʊ ɑʊ aʊ aɔ aʊ ɑɔ aʊ")  # the five spellings of one German diphthong
_ARPABET = _pairs(
    "AA ɑ AE æ AH ʌ AH0 ə AO ɔ EH ɛ ER ɝ IH ɪ IY i UH ʊ UW u AX ə AW aʊ AY aɪ EY eɪ OW oʊ OY ɔɪ B b CH tʃ D d DH ð F f G ɡ HH h JH dʒ "
    "K k L l M m N n NG ŋ P p R ɹ S s SH ʃ T t TH θ V v W w Y j Z z ZH ʒ"
)
SCHEMES = ("arpabet", "lablaut", "ipa")


@dataclass(frozen=True)
class Phone:
    """A phone:

    ``ipa`` without tone, stress and length, what was taken off (``marks``), and its kind.
    """

    ipa: str
    marks: str
    kind: Kind


def to_ipa(label: str, scheme: str) -> Phone | None:
    """The phone of a label in one way of writing; None for silence, noise and what is not known."""
    label = label.strip()
    if label.lower() in _SILENCE:
        return None
    if scheme == "arpabet":
        stem = label.rstrip("0123456789")
        ipa = _ARPABET.get(label) or _ARPABET.get(stem)
        return None if ipa is None else Phone(ipa, label[len(stem) :], _kind(ipa))
    if scheme == "lablaut":
        symbol, _, marks = label.partition(" ")
        symbol = symbol[0] if len(symbol) == 2 and symbol[0] == symbol[1] else symbol  # nn: the end of a word and the start of the next
        ipa = "".join(_LABLAUT.get(letter, "*") for letter in symbol)
        ipa = _LABLAUT_DIPHTHONGS.get(ipa, ipa)
        return None if "*" in ipa or (len(ipa) > 1 and _kind(ipa) == "consonant") else Phone(ipa, marks, _kind(ipa))
    marks = "".join(_MARKS.findall(label)).strip()
    bare = _MARKS.sub("", label).replace("g", "ɡ")
    bare = _ESPEAK.get(bare, bare).replace("̪", "")
    if not bare or bare == _PALATAL or not all(letter in VOWELS or letter in _CONSONANTS or letter in "ʰʲʷˠ" for letter in bare):
        return None
    return Phone(bare, marks, _kind(bare))


def _kind(ipa: str) -> Kind:
    vowels = sum(letter in VOWELS for letter in ipa)
    if vowels == len(ipa) == 1:
        return "vowel"
    return "diphthong" if vowels and all(letter in VOWELS or letter in "jw" for letter in ipa) else "consonant"


def scheme_of(labels: Iterable[str] | Mapping[str, int]) -> str:
    """The way of writing that reads most of the labels; of equals the first of :data:`SCHEMES`."""
    counts = Counter(labels) if not isinstance(labels, Mapping) else Counter(dict(labels))
    return max(SCHEMES, key=lambda scheme: sum(count for label, count in counts.items() if to_ipa(label, scheme) is not None))


def ipa_phones(table: pl.DataFrame) -> pl.DataFrame:
    """The phones of a manifest table in IPA, one row each, in order of utterance and time.

    The way of writing is found for each corpus and language. A palatalisation that stands alone
    belongs to the consonant before it.

    Returns:
        columns utterance, start_s, end_s (f64), label (the corpus's own), ipa (null: silence, noise
        or not known), marks, kind.
    """
    schema = {"utterance": pl.String, "start_s": pl.Float64, "end_s": pl.Float64, "label": pl.String}
    schema |= {"ipa": pl.String, "marks": pl.String, "kind": pl.String}
    rows: list[tuple[str, float, float, str, str | None, str | None, str | None]] = []
    with_phones = table.filter(pl.col("phones").list.len() > 0).select("corpus", "language", "utterance", "phones")
    for (_, language), part in with_phones.group_by("corpus", "language", maintain_order=True):
        counts = Counter(part["phones"].explode().struct.field("label").to_list())
        scheme = scheme_of(counts)
        known = {label: to_ipa(label, scheme) for label in counts}
        habits = _BY_LANGUAGE.get(str(language).partition("-")[0], {})
        for _, _, utterance, phones in part.iter_rows():
            before = len(rows)
            for entry in phones:
                phone = known[entry["label"]]
                if phone is None and entry["label"].strip() == _PALATAL and len(rows) > before and rows[-1][6] == "consonant":
                    name, start, _, label, ipa, marks, kind = rows[-1]
                    rows[-1] = (name, start, entry["end_s"], f"{label}{_PALATAL}", f"{ipa}{_PALATAL}", marks, kind)
                    continue
                found = (None, None, None) if phone is None else (habits.get(phone.ipa, phone.ipa), phone.marks, phone.kind)
                rows.append((utterance, entry["start_s"], entry["end_s"], entry["label"], *found))
    return pl.DataFrame(rows, schema=schema, orient="row")


def vowel_distance(one: str, other: str) -> float:
    """Articulatory distance of two monophthongs in [0, 1]: mean of the differences of height,
    backness and rounding, each of its range.

    The graded form of a Hamming distance over articulatory features.
    """
    a, b = VOWELS[one], VOWELS[other]
    return (abs(a[0] - b[0]) / 6 + abs(a[1] - b[1]) / 4 + abs(a[2] - b[2])) / 3
