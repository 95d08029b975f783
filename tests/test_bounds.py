"""YAML, JSON, labels, archives, arrays and tables that somebody made to do harm: each is refused in
one message, none takes the process.

Every file here is opened by the function that opens it in a run, in a process with a limit of
memory and time.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysere.base.errors import DataError
from raysere.features.rows import MappedLayers
from tests.bombs import opened

Maker = Callable[[Path], None]
FILES = "from pathlib import Path\nfrom raysere.base.files import read_json, read_yaml"


def text(content: str | Callable[[], str]) -> Maker:
    return lambda path: path.write_text(content if isinstance(content, str) else content())  # type: ignore[func-returns-value]


def laughs(item: str, *, merge: bool = False) -> str:
    """Each line nine times the one before it."""
    lines = [f"a: &a {item}"]
    for before, name in zip("abcdefghijklmnop", "bcdefghijklmnopq"):
        nine = f"[{', '.join([f'*{before}'] * 9)}]"
        lines.append(f"{name}: &{name} " + (f"{{<<: {nine}}}" if merge else nine))
    return "\n".join(lines)


def check(path: Path, imports: str, call: str, kind: str, said: str) -> None:
    found, message = opened(imports, call, path)
    assert found == kind, message
    assert said in message
    assert path.name in message  # where


YAML: dict[str, tuple[Maker, str]] = {
    "aliases": (text(laughs("[x, x, x]")), "values in YAML"),
    "merged": (text(laughs("{k: 1, l: 2}", merge=True)), "values in YAML"),
    "itself": (text("a: &a [1, *a]\n"), "contains itself"),
    "brackets": (text("[" * 500_000), "levels of lists"),
    "dashes": (text("- " * 300_000 + "a"), "levels of lists"),
    "closed": (text("[" * 3000 + "]" * 3000), "levels of lists"),
    "many": (text("- a\n" * 2_000_000), "values in YAML"),
    "keys": (text(lambda: "\n".join(f"{i * (2**61 - 1)}: 1" for i in range(100_000))), "18 digits"),
    "base60": (text("a: " + ":".join(["1"] * 1_000_000)), "digits of one number"),
    "tagged": (text('a: !!int "' + "1: " * 500_000 + '1"'), "digits of one number"),
    "float": (text("a: " + ":".join(["1"] * 400) + ".5"), "This is not YAML"),
    "digits": (text("a: " + "9" * 5000), "This is not YAML"),
    "large": (lambda path: path.open("wb").truncate(3 << 30), "bytes, where"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(name: str, tmp_path: Path) -> None:
    make, said = YAML[name]
    make(tmp_path / "experiment.yaml")
    check(tmp_path / "experiment.yaml", FILES, "read_yaml(path)", "ConfigError", said)


JSON: dict[str, tuple[Maker, str]] = {
    "deep": (text("[" * 100_000 + "]" * 100_000), "levels of lists"),
    "deeper than is read": (text("[" * 300 + "]" * 300), "levels of lists"),
    "digits": (text("9" * 100_000), "This is not JSON"),
    "large": (lambda path: path.open("wb").truncate(3 << 30), "bytes, where"),  # type: ignore[dict-item]
    "device": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
}


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, tmp_path: Path) -> None:
    make, said = JSON[name]
    make(tmp_path / "evaluation.json")
    check(tmp_path / "evaluation.json", FILES, "read_json(path)", "ConfigError", said)


def test_a_pipe_does_not_hold_the_reader(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "evaluation.json")
    check(tmp_path / "evaluation.json", FILES, "read_json(path)", "ConfigError", "a pipe or a device")


def test_what_is_large_and_honest_opens(tmp_path: Path) -> None:
    from raysere.base.bounds import DEPTH
    from raysere.base.files import read_json, read_yaml

    rows = [{"id": number, "weight": 0.12345678901234567, "name": f"one {number}"} for number in range(10_000)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.yaml").write_text(json.dumps(rows))
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.yaml") == rows
    (tmp_path / "b.yaml").write_text("base: &base {lr: 0.1, units: 5}\nlist: &list [1, 2]\none: {<<: *base, lr: 0.2}\nagain: *list\n")
    assert read_yaml(tmp_path / "b.yaml")["one"] == {"lr": 0.2, "units": 5}
    for suffix, read in (("yaml", read_yaml), ("json", read_json)):
        (tmp_path / f"deep.{suffix}").write_text("[" * DEPTH + "]" * DEPTH)
        assert isinstance(read(tmp_path / f"deep.{suffix}"), list)


def test_a_variable_that_is_named_a_million_times_and_a_key_of_a_million_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG", "x" * 100_000)
    (tmp_path / "e.yaml").write_text("runs: '" + "${LONG}" * 100_000 + "'\n")
    imports = "from pathlib import Path\nfrom raysere.pipeline.experiment import read_experiment"
    check(tmp_path / "e.yaml", imports, "len(str(read_experiment(Path(path))))", "ConfigError", "characters of variables")
    (tmp_path / "f.yaml").write_text("runs: '" + "${A:-" * 400_000 + "'\n")  # not one of them ends
    assert opened(imports, "len(str(read_experiment(Path(path))))", tmp_path / "f.yaml")[0] == "opened"
    for value in ("runs=" + "[" * 100_000, "a." * 100_000 + "b=1"):
        (tmp_path / "set").write_text(value)
        (tmp_path / "g.yaml").write_text("runs: x\n")
        call = "read_experiment(Path(path), [Path(path).with_name('set').read_text()])"
        kind, message = opened(imports, call, tmp_path / "g.yaml")
        assert kind == "ConfigError"
        assert "--set" in message


# ---- labels of corpora


def grid(body: str, tiers: str = "1") -> str:
    return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n1\n<exists>\n{tiers}\n{body}'


GRIDS: dict[str, tuple[Maker, str]] = {
    "a milliard intervals": (text(grid('"IntervalTier"\n"words"\n0\n1\n999999999\n')), "a tier of 999999999 entries"),
    "a milliard points": (text(grid('"TextTier"\n"words"\n0\n1\n99999999999999\n')), "a tier of 99999999999999 entries"),
    "round and round": (
        text(grid('"x"\n"IntervalTier"\n"a"\n0\n1\n-2\n"TextTier"\n"b"\n0\n1\n-2\n', tiers="99999999999999")),
        "cannot be read",
    ),
    "backwards": (text(grid('"TextTier"\n"words"\n0\n1\n-1\n' + "1 " * 50, tiers="99999999999")), "a tier of -1 entries"),
    "values": (text(grid("1 " * 10_000_000)), "values in this TextGrid"),
    "large": (lambda path: path.open("wb").truncate(3 << 30), "bytes, where"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", GRIDS)
def test_textgrids(name: str, tmp_path: Path) -> None:
    make, said = GRIDS[name]
    make(tmp_path / "a.TextGrid")
    imports = "from pathlib import Path\nfrom raysere.corpora.textgrid import read_textgrid"
    check(tmp_path / "a.TextGrid", imports, "read_textgrid(Path(path))", "DataError", said)


def test_a_textgrid_of_a_hundred_thousand_intervals_opens(tmp_path: Path) -> None:
    from raysere.corpora.textgrid import read_textgrid

    rows = "".join(f'{number}\n{number + 1}\n"word {number}"\n' for number in range(100_000))
    (tmp_path / "a.TextGrid").write_text(grid(f'"IntervalTier"\n"words"\n0\n100000\n100000\n{rows}'))
    assert len(read_textgrid(tmp_path / "a.TextGrid")["words"]) == 100_000


def zipped(entries: dict[str, int]) -> Maker:
    """An archive of files of so many zeros."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, size in entries.items():
                with archive.open(name, "w", force_zip64=True) as file:
                    for _ in range(size // (1 << 20)):
                        file.write(bytes(1 << 20))

    return make


def many_entries(path: Path) -> None:
    """A list of 2.5 million files in an archive that says (in the wide form) that it has them."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 2_500_000
    with path.open("wb") as file:
        file.write(entry * count)
        at = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, at, 0))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, at, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


ZIPS: dict[str, tuple[Maker, str]] = {
    "one": (zipped({"a.lablaut": 1200 << 20}), "bytes of labels, unpacked"),
    "many": (many_entries, "list of files"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_labels_in_an_archive(name: str, tmp_path: Path) -> None:
    make, said = ZIPS[name]
    make(tmp_path / "labels.zip")
    imports = "from pathlib import Path\nfrom raysere.corpora.lablaut import read_lablaut"
    kind, message = opened(imports, "read_lablaut(Path(path).parent, {'a'})", tmp_path / "labels.zip")
    assert kind == "opened"  # a corpus without its phone labels is still a corpus: what went wrong is a note
    assert said in message
    assert "labels.zip" in message


# ---- tables


TABLE = "from raysere.features.backbones.table import Table"


def npz(header: bytes, ids: np.ndarray | None = None, data: bytes = b"") -> Maker:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            buffer = io.BytesIO()
            np.save(buffer, np.array(["a", "b"]) if ids is None else ids, allow_pickle=True)
            archive.writestr("id.npy", buffer.getvalue())
            version = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header))
            archive.writestr("values.npy", version + header + data)

    return make


def header(shape: str, descr: str = "'<f4'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()


def zeros(path: Path) -> None:
    """Two ids and 800 MB of zeros that are well described."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array(["a", "b"]))
        archive.writestr("id.npy", buffer.getvalue())
        with archive.open("values.npy", "w", force_zip64=True) as file:
            head = header(f"(2, {100 << 20})")
            file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head)
            for _ in range(800):
                file.write(bytes(1 << 20))


ARRAYS: dict[str, tuple[Maker, str]] = {
    "petabytes": (npz(header("(1000000000, 1000000)")), "bytes of arrays, unpacked"),
    "goes round": (npz(header("(4294967296, 4294967296)")), "bytes of arrays, unpacked"),
    "zeros": (zeros, "bytes of arrays, unpacked"),
    "header": (npz(b"(" * (100 << 20)), "a header of 104,857,600 bytes"),
    "nested": (npz(b"-" * 9000 + b"1"), "another kind than plain arrays"),
    "digits": (npz(header("(" + "1" * 64 + "x)")), "another kind than plain arrays"),  # where digits can be grouped in 2**63 ways
    "pickles": (npz(header("(2, 2)"), ids=np.array(["a", "b"], object)), "they are pickles"),
    "short": (npz(header("(2, 1000)"), data=b"1234"), "ends before its 2 x 1000 values"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_an_archive(name: str, tmp_path: Path) -> None:
    make, said = ARRAYS[name]
    make(tmp_path / "vectors.npz")
    check(tmp_path / "vectors.npz", TABLE, "Table.describe(path)", "DataError", said)


def repeated_lists(path: Path) -> None:
    pl.select(id=pl.Series(["a"]), values=pl.repeat(1.0, 80_000_000, dtype=pl.Float32).implode()).write_parquet(path)


def repeated_rows(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pl.select(id=pl.repeat(1.0, 5_000_000)).to_arrow()
    with pq.ParquetWriter(path, pa.schema(rows.schema)) as writer:
        for _ in range(30):
            writer.write_table(rows, row_group_size=5_000_000)


PARQUETS: dict[str, tuple[Maker, str]] = {
    "rows": (repeated_rows, "bytes for 150,000,000 rows"),
    "a list": (repeated_lists, "bytes for the values of lists"),
    "one text": (
        lambda path: pl.DataFrame({"id": ["x" * 1_000_000]}).select(pl.col("id").repeat_by(400).explode(), v=1.0).write_parquet(path),
        "texts written out",
    ),
    "none": (text("PAR1 and nothing"), "not a parquet file"),
}


@pytest.mark.parametrize("name", PARQUETS)
def test_parquet(name: str, tmp_path: Path) -> None:
    make, said = PARQUETS[name]
    make(tmp_path / "table.parquet")
    check(tmp_path / "table.parquet", f"import pyarrow.parquet\n{TABLE}", "Table.describe(path)", "DataError", said)


CSVS: dict[str, tuple[Maker, str]] = {
    "columns": (text("id," + "a," * 3_000_000 + "\n1,2\n"), "columns of a table"),
    "filled up": (text("id" + ",a" * 10_000 + "\n" + "1\n" * 100_000), "cells of a table"),
    "large": (lambda path: path.open("wb").truncate(3 << 30), "bytes of a table"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", CSVS)
def test_tables_as_text(name: str, tmp_path: Path) -> None:
    make, said = CSVS[name]
    make(tmp_path / "table.csv")
    check(tmp_path / "table.csv", TABLE, "Table.describe(path)", "DataError", said)
    imports = "from pathlib import Path\nfrom raysere.corpora.adapters.tabular import read_text_or_parquet"
    check(tmp_path / "table.csv", imports, "read_text_or_parquet(Path(path))", "DataError", said)


# ---- arrays of the store, tensors


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (header("(4294967296, 4294967296)"), "its header says"),
        (header("(1000000000000, 768)"), "its header says"),
        (header("(2, 2)", "'|O'"), "they are pickles"),
        (header("(2, 2)", "[('a', '<f4')]"), "another kind than plain arrays"),
        (b"(" * (100 << 20), "a header of 104,857,600 bytes"),
    ],
)
def test_shards(head: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "shard-00000" / "layer-01.npy"
    path.parent.mkdir()
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + bytes(16))
    with pytest.raises(DataError, match=said) as caught:  # nothing is allocated for it, so this process can look
        MappedLayers(tmp_path).array(0, 1)
    assert str(path) in str(caught.value)


def tensors(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_codebooks(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from raysere.base.errors import RaysereError
    from raysere.nn.frame_units import FORMAT, FrameUnits

    path = tmp_path / "codebook.safetensors"
    meta = {"format": FORMAT, "layer": 1, "norm": "none", "spec_key": "k", "meta": {}}
    centres = np.zeros((2, 3), np.float32)
    for content, said in (
        ("[" * 5000 + "]" * 5000, "levels of lists"),
        ("[]", "format of a codebook"),
        ("5", "format of a codebook"),
        (json.dumps(meta | {"more": 1}), "not a codebook"),
    ):
        save_file({"centres": centres}, path, {"raysere": content})
        with pytest.raises(RaysereError, match=said):
            FrameUnits.load(path)
    for wrong in (np.zeros(3, np.float32), np.zeros((2, 3), np.int64), np.full((2, 3), np.nan, np.float32)):
        save_file({"centres": wrong}, path, {"raysere": json.dumps(meta)})
        with pytest.raises(RaysereError, match="not finite float32"):
            FrameUnits.load(path)
    tensors(path, b" " * (50 << 20))
    with pytest.raises(RaysereError, match="bytes of safetensors header"):
        FrameUnits.load(path)
    tensors(path, b'{"centres":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,16]}}', bytes(16))
    with pytest.raises(RaysereError, match="not a codebook"):
        FrameUnits.load(path)
    overlapping = b'{"centres":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    tensors(path, overlapping, bytes(16))
    with pytest.raises(RaysereError, match="not a codebook"):
        FrameUnits.load(path)


# ---- spaces and experiments


def test_a_space_is_small_and_its_numbers_are_numbers() -> None:
    from raysere.base.errors import ConfigError
    from raysere.search.space.grammar import parse_space

    chain = {f"p{number}": {"choice": [1, 2], "when": {f"p{number + 1}": 1}} for number in range(5000)}
    with pytest.raises(ConfigError, match="parameters under `space`"):
        parse_space({"method": "pooled", "space": {**chain, "p5000": {"choice": [1, 2]}}})
    for ends in ([0.0, float("inf")], [0, 10**400], [float("nan"), 1.0]):
        with pytest.raises(ConfigError, match="is not a number"):
            parse_space({"method": "pooled", "space": {"lr": {"float": ends, "step": 0.1}}})


def test_an_experiment_names_few_things_and_tells_few_problems(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    base = "corpora: [{corpus: emodb, path: x}]\ntask: {classes: [a, b]}\nfeatures: {a: {backbone: acoustic}}\n"
    path.write_text(base + "search:\n" + "- {space: a, features: a}\n" * 40_000)
    imports = "from raysere.pipeline.experiment import load_experiment"
    check(path, imports, "load_experiment(path)", "ConfigError", "at most 1000 items")
    path.write_text(base + "search: [{space: a, features: a}]\n" + "".join(f"key{number}: 1\n" for number in range(40_000)))
    check(path, imports, "load_experiment(path)", "ConfigError", "more")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", {"model_type": "wav2vec2", "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"model_type": "bert", "vocab_size": 10**12, "hidden_size": 768}, "vocab_size"),
        ("preprocessor_config.json", {"sampling_rate": 10**12}, "sampling rate"),
    ],
)
def test_a_model_of_a_milliard_layers(file: str, content: dict, said: str, tmp_path: Path) -> None:
    from raysere.base.errors import ConfigError
    from raysere.features.backbones.hf import HuggingFace

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        HuggingFace.describe(str(tmp_path))
