"""Class maps: from the labels of a corpus to the classes of a task; dropped labels are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from raysere.base.errors import ConfigError, DataError, UnknownNameError

REST = "*"
_WORDS = {  # English words and forms of them, as tables and label files write them
    "anger": ("anger", "angry"),
    "boredom": ("boredom", "bored"),
    "calm": ("calm",),
    "contempt": ("contempt",),
    "disgust": ("disgust", "disgusted"),
    "fear": ("fear", "fearful"),
    "happiness": ("happiness", "happy", "joy"),
    "neutral": ("neutral",),
    "sadness": ("sadness", "sad"),
    "surprise": ("surprise", "surprised"),
}
_EMODB = {
    "W": "anger",
    "F": "happiness",
    "N": "neutral",
    "T": "sadness",
    "A": "fear",
    "L": "boredom",
    "E": "disgust",
}  # German: Wut, Freude, ..., Angst
_EMOVO = {"rab": "anger", "gio": "happiness", "neu": "neutral", "tri": "sadness", "pau": "fear", "dis": "disgust", "sor": "surprise"}
_RAVDESS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
_CREMA = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
_CHALLENGE = {"A": "anger", "S": "sadness", "H": "happiness", "U": "surprise", "F": "fear", "D": "disgust", "C": "contempt", "N": "neutral"}
_COMMON = ("anger", "happiness", "neutral", "sadness")


@dataclass(frozen=True)
class ClassMap:
    """Own labels to classes.

    Attributes:
        name: as it stands in the experiment.
        classes: the classes in their order; every stored prediction has its columns in this order,
            by name.
        rules: own label to class, or to None for labels that are left out. A key may be bound to
            one corpus (``emodb:F``), which comes before the plain key; a label that no key equals
            is tried again without regard to case; the key ``*`` says what becomes of all others.
        note: what a reader of a report should know of the map.
    """

    name: str
    classes: tuple[str, ...]
    rules: dict[str, str | None] = field(hash=False)
    note: str = ""

    def __post_init__(self) -> None:
        where = f"class map {self.name!r}"
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ConfigError(f"A class map needs two or more different classes, this one has {list(self.classes)}", where=where)
        unreachable = set(self.classes) - set(self.rules.values())
        if unreachable:
            raise ConfigError(f"No label leads to the class {', '.join(sorted(unreachable))}", where=where)
        unknown = sorted(
            {f"{label} -> {target}" for label, target in self.rules.items() if target is not None and target not in self.classes}
        )
        if unknown:
            raise ConfigError(f"A rule leads to a class that is not in the list: {', '.join(unknown)}", where=where, choices=self.classes)

    def apply(self, table: pl.DataFrame) -> tuple[list[str | None], dict[str, int]]:
        """The class of each row of a manifest table (columns ``emotion`` and, where there is one,
        ``corpus``), in its order.

        Returns:
            labels: None where the row has no emotion or the map leaves its label out.
            dropped: own label to the number of rows that the map left out; rows without any emotion
                are not counted.

        Raises:
            DataError: labels that the map does not know, with counts; it lists those that it knows.
        """
        corpora = table["corpus"].to_list() if "corpus" in table.columns else [None] * table.height
        rows = list(zip(corpora, table["emotion"].to_list(), strict=True))
        rules = {**{label.casefold(): target for label, target in self.rules.items()}, **self.rules}
        targets: dict[tuple[str | None, str | None], str | None] = {}
        unknown: Counter[str] = Counter()
        for pair, count in Counter(rows).items():
            corpus, label = pair
            if label is None:
                targets[pair] = None
                continue
            for key in (f"{corpus}:{label}", label, f"{corpus}:{label}".casefold(), label.casefold(), REST):
                if key in rules:
                    targets[pair] = rules[key]
                    break
            else:
                unknown[f"{label} ({count} of {corpus})" if corpus else f"{label} ({count})"] += count
        if unknown:
            raise DataError(
                f"The class map {self.name!r} does not know these labels: {', '.join(sorted(unknown))}",
                choices=sorted(self.rules),
                remedy=f"Choose another class map ({', '.join(CLASS_MAPS)}), or write one as {{own label: class, another: null}}; "
                "'*': null leaves out all others.",
            )
        dropped: Counter[str] = Counter(label for corpus, label in rows if label is not None and targets[corpus, label] is None)
        return [targets[row] for row in rows], dict(sorted(dropped.items()))

    def missing(self, labels: Sequence[str | None]) -> list[str]:
        """Classes that none of these labels has."""
        present = set(labels)
        return [name for name in self.classes if name not in present]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`class_map` takes it back."""
        return {"name": self.name, "classes": list(self.classes), "rules": dict(self.rules), "note": self.note}


def _map(
    name: str,
    classes: Sequence[str],
    note: str,
    *codes: Mapping[str, str],
    merge: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
) -> ClassMap:
    """A map that knows the published ``codes``, and the English words of the emotions that these
    name.

    Emotions among them that are no class are left out, and so is what ``drop`` lists. A label of an
    emotion that the corpus does not have stays unknown.
    """
    merge = merge or {}
    known = {*classes, *merge, *(emotion for table in codes for emotion in table.values())}
    words = {word: emotion for emotion in sorted(known) for word in _WORDS[emotion]}
    targets = {label: merge.get(emotion, emotion) for table in (words, *codes) for label, emotion in table.items()}
    rules: dict[str, str | None] = {label: target if target in classes else None for label, target in targets.items()}
    return ClassMap(name, tuple(classes), {**rules, **dict.fromkeys(drop)}, note)


def _bound(corpus: str, codes: Mapping[str, str]) -> dict[str, str]:
    return {f"{corpus}:{label}": emotion for label, emotion in codes.items()}


_PLAIN = {emotion: emotion for emotion in _WORDS}
_EMODB_WORDS = {
    "Wut": "anger",
    "Ärger": "anger",
    "Freude": "happiness",
    "Trauer": "sadness",
    "Angst": "fear",
    "Langeweile": "boredom",
    "Ekel": "disgust",
}
_EMOVO_WORDS = {
    "rabbia": "anger",
    "gioia": "happiness",
    "neutro": "neutral",
    "tristezza": "sadness",
    "paura": "fear",
    "disgusto": "disgust",
    "sorpresa": "surprise",
}
_LETTERS = ("msp-podcast", "biic-podcast")

CLASS_MAPS: dict[str, ClassMap] = {
    entry.name: entry
    for entry in (
        _map(
            "emodb4", _COMMON, "Anger, happiness, neutral, sadness of EmoDB; boredom, disgust and fear are left out.", _EMODB, _EMODB_WORDS
        ),
        _map("emodb7", (*_COMMON, "boredom", "disgust", "fear"), "All seven classes of EmoDB.", _EMODB, _EMODB_WORDS),
        _map("emovo7", (*_COMMON, "disgust", "fear", "surprise"), "All seven classes of EMOVO.", _EMOVO, _EMOVO_WORDS),
        _map(
            "ravdess8",
            (*_COMMON, "calm", "disgust", "fear", "surprise"),
            "All eight classes of RAVDESS; calm is a class of its own.",
            _RAVDESS,
        ),
        _map(
            "ravdess7",
            (*_COMMON, "disgust", "fear", "surprise"),
            "RAVDESS with calm merged into neutral.",
            _RAVDESS,
            merge={"calm": "neutral"},
        ),
        _map("nemo6", (*_COMMON, "fear", "surprise"), "All six classes of nEMO ('surprised' is named surprise)."),
        _map("urdu4", _COMMON, "All four classes of URDU."),
        _map("crema6", (*_COMMON, "disgust", "fear"), "All six classes of CREMA-D.", _CREMA),
        _map("meld7", (*_COMMON, "disgust", "fear", "surprise"), "All seven classes of MELD ('joy' is named happiness)."),
        _map(
            "challenge8",
            tuple(_CHALLENGE.values()),
            "The eight classes of the naturalistic-conditions challenge; O (other) and X (no agreement) are left out.",
            _CHALLENGE,
            drop=("O", "X", "other", "no_agreement", "no agreement"),
        ),
        _map(
            "common4",
            _COMMON,
            "Anger, happiness, neutral, sadness, the classes that all corpora share; everything else is left out (RAVDESS's calm too).",
            _PLAIN,
            _EMOVO,
            _RAVDESS,
            _CREMA,
            _EMODB_WORDS,
            _EMOVO_WORDS,
            _bound("emodb", _EMODB),
            *(_bound(corpus, _CHALLENGE) for corpus in _LETTERS),
            drop=("other", "no_agreement", "no agreement", *(f"{corpus}:{label}" for corpus in _LETTERS for label in "OX")),
        ),
        _map("demo4", _COMMON, "The four classes of the synthetic demo corpus."),
    )
}


def class_map(spec: str | Mapping[str, Any] | Sequence[str] | ClassMap) -> ClassMap:
    """A class map by name, as a mapping, or as a list of labels that are their own classes.

    A mapping is ``{own label: class or null}`` (classes in order of first mention) or
    ``{classes: [...], rules: {...}}`` with optional ``name`` and ``note``. With a list, a label
    outside it is an error, so that no label is lost by a typing mistake; ``{..., "*": null}``
    leaves the rest out.

    Raises:
        UnknownNameError: no map of that name; lists the names.
        ConfigError: fewer than two classes, a rule to a class that is not there.
    """
    if isinstance(spec, ClassMap):
        return spec
    if isinstance(spec, str):
        if spec not in CLASS_MAPS:
            raise UnknownNameError("class map", spec, CLASS_MAPS)
        return CLASS_MAPS[spec]
    if isinstance(spec, Mapping):
        rules = spec["rules"] if isinstance(spec.get("rules"), Mapping) else spec
        extra = set(spec) - {"name", "classes", "rules", "note"} if rules is not spec else set()
        if extra:
            raise ConfigError(
                f"A class map has no key {', '.join(map(repr, sorted(map(str, extra))))}", choices=["name", "classes", "rules", "note"]
            )
        plain = {str(label): None if target is None else str(target) for label, target in rules.items()}
        first = tuple(dict.fromkeys(target for target in plain.values() if target is not None))
        classes = tuple(map(str, spec.get("classes") or first)) if rules is not spec else first
        return ClassMap(
            str(spec.get("name", "custom")) if rules is not spec else "custom",
            classes,
            plain,
            str(spec.get("note", "")) if rules is not spec else "",
        )
    if isinstance(spec, Sequence):
        labels = tuple(map(str, spec))
        return ClassMap("custom", labels, {label: label for label in labels})
    raise ConfigError(f"A class map is a name, a list of labels or a mapping, not {spec!r}", choices=CLASS_MAPS)
