"""``lablaut`` files of EmoDB: narrow phonetic labels with end times, as xlabel of ESPS wrote them
(Latin-1 text).

A row is ``end_s  colour  label[ modifiers]``. One speech sound may take several rows: the closure
of a plosive (``t``), its burst (``!t``) and its aspiration (``tasp``), and rows without a label
(``-sth``) from which on a modifier of the sound holds. A closure after a pause (``_t``) cannot be
told from the pause. ``.`` and ``(`` are pauses, ``(gef`` is a filled one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysere.base.bounds import ZIP_ERRORS, open_zip, read_bytes, refusal
from raysere.base.errors import DataError, EnvironmentFault, RaysereError, machine_fault

_FILE_BYTES, _FILES, _ALL_BYTES = 1 << 20, 20_000, 64 << 20  # EmoDB has some 900 files of a few KB each
_ROW = re.compile(r"\s*(\d+(?:\.\d*)?)\s+-?\d+(?:[ \t](.*))?$")
_PLOSIVE = "ptkbdg"
_ASPIRATION = re.compile(rf"([{_PLOSIVE}])(?:asp|sap|as)$")
_SUFFIX = re.compile(r"(?:xx)?\.lablaut$")


def parse_lablaut(text: str) -> list[dict[str, Any]]:
    """The speech sounds of one file in order of time, as the manifest's ``phones``; pauses are left
    out.

    A label is the symbol and then, each after a blank, the modifiers and the accent of its first
    row (``a +nas 1``). A file without labels (there are three in EmoDB) gives an empty list.

    Raises:
        DataError: the file is no label file, or its times run backwards.
    """
    lines = text.splitlines()
    head = next((number for number, line in enumerate(lines) if line.strip() == "#"), None)
    if head is None:
        raise DataError("This is not a label file: it has no line '#' before its labels")
    phones: list[dict[str, Any]] = []
    open_phone: dict[str, Any] | None = None  # the sound that a following row may go on with; None in a pause
    begin = 0.0
    for number, line in enumerate(lines[head + 1 :], head + 2):
        if not line.strip():
            continue
        match = _ROW.match(line)
        if match is None or float(match.group(1)) < begin:
            raise DataError("This row has no end time after that of the row before it", where=f"line {number}: {line.strip()}")
        end = float(match.group(1))
        symbol, modifiers = _split(match.group(2) or "")
        if symbol == "" or _belongs(symbol, open_phone):
            if open_phone is not None:
                open_phone["end_s"] = end
        elif symbol[0] in "._(":
            open_phone = None
        else:
            open_phone = {"label": " ".join([_plain(symbol), *modifiers]), "start_s": begin, "end_s": end}
            phones.append(open_phone)
        begin = end
    return phones


def read_lablaut(root: Path, stems: Mapping[str, Any] | set[str]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Phones by utterance stem, from ``labels.zip`` or the folder ``lablaut/`` of a corpus root,
    and what went wrong, a line each.

    Of several files of one utterance (``14b09Ea.lablaut`` and ``14b09Eaxx.lablaut``) the one with
    more sounds counts.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    faults: list[str] = []
    try:
        files = list(_files(root, stems))
    except RaysereError as error:
        if isinstance(error, EnvironmentFault):
            raise
        return {}, [f"the label files are not read: {error.message}"]
    except ZIP_ERRORS as error:
        if not isinstance(error, PermissionError) and (fault := machine_fault(error, root)):
            raise fault from error  # the manifest would lack the phones for good
        return {}, [f"the label files cannot be opened ({error})"]
    for name, data in files:
        stem = _SUFFIX.sub("", name)
        try:
            phones = parse_lablaut(data.decode("latin-1"))
        except DataError as error:
            faults.append(f"{name}: {error.what}")
            continue
        if len(phones) > len(found.get(stem, [])):
            found[stem] = phones
    return found, faults


def _files(root: Path, stems: Mapping[str, Any] | set[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the files of these utterances.

    Raises DataError where one, or all of them, are larger than labels can be.
    """
    if (root / "lablaut").is_dir():
        for path in sorted((root / "lablaut").glob("*.lablaut")):
            if _SUFFIX.sub("", path.name) in stems:
                yield path.name, read_bytes(path, _FILE_BYTES)
    elif (root / "labels.zip").is_file():
        with open_zip(root / "labels.zip", _FILES) as archive:
            wanted = [
                (entry.filename.rpartition("/")[2], entry)
                for entry in sorted(archive.infolist(), key=lambda entry: entry.filename)
                if entry.filename.endswith(".lablaut") and _SUFFIX.sub("", entry.filename.rpartition("/")[2]) in stems
            ]
            sizes = [entry.file_size for _, entry in wanted]
            for most, asked in ((_FILE_BYTES, max(sizes, default=0)), (_ALL_BYTES, sum(sizes))):
                if asked > most:
                    raise refusal("bytes of labels, unpacked", asked, most, where=root / "labels.zip")
            for name, entry in wanted:
                yield name, archive.read(entry)  # no more than the size it claims


def _split(label: str) -> tuple[str, list[str]]:
    """Symbol ("" where the row only changes modifiers) and modifiers; ``g-sth`` lacks its blank,
    ``[+eng`` has a bracket.
    """
    parts = [part for token in label.replace("[", "").replace("]", "").split() for part in _unglued(token)]
    if not parts or parts[0][0] in "+-" or parts[0] == "hoe":  # one row says hoe for +hoe
        return "", parts
    return parts[0], parts[1:]


def _unglued(token: str) -> list[str]:
    head = re.match(r"[^+\-]+(?=[+\-])", token)
    return [head.group(0), token[head.end() :]] if head else [token]


def _belongs(symbol: str, before: dict[str, Any] | None) -> bool:
    """Whether a burst or an aspiration ends the plosive before it."""
    if before is None or not (symbol[0] == "!" or _ASPIRATION.match(symbol)):
        return False
    return before["label"][0] in _PLOSIVE and before["label"].partition(" ")[0] in _PLOSIVE


def _plain(symbol: str) -> str:
    """The sound of a burst or an aspiration that stands alone: ``!d`` after a pause is a d."""
    aspirated = _ASPIRATION.match(symbol)
    return aspirated.group(1) if aspirated else symbol.lstrip("!") or "?"
