"""Tables of ready vectors: joined by id, in every format, with a reason for what is missing or
wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.testing.backbone import check_backbone

IDS = ["b", "a", "c/deep"]
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def save(path: Path, ids: list[str] = IDS, values: np.ndarray = VALUES, column: str = "utterance") -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{column: np.array(ids), "vectors": values})
        return path
    table = pl.DataFrame({column: ids, **{f"f{i}": values[:, i] for i in range(values.shape[1])}})
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv", ".tsv"])
@pytest.mark.parametrize("column", ["utterance", "utt_id", "id"])
def test_rows_are_joined_by_id_in_every_format(tmp_path: Path, suffix: str, column: str) -> None:
    backbone = open_backbone(f"table:{save(tmp_path / f'v{suffix}', column=column)}")
    items = [Item("corpus/a"), Item("b"), Item("corpus/c/deep"), Item("c/deep")]
    check_backbone(backbone, items)
    rows = [row[0][0] for row in backbone.encode(items, [0])]
    assert np.array_equal(rows, VALUES[[1, 0, 2, 2]])
    info = backbone.info
    assert (info.modality, info.sampling_rate, info.layers[0].dim, info.layers[0].rows, info.kind) == (
        "audio",
        None,
        4,
        "utterance",
        "dense",
    )


def test_lists_in_a_column_are_vectors(tmp_path: Path) -> None:
    pl.DataFrame({"name": IDS, "speaker": [1, 2, 3], "embedding": VALUES.tolist()}).write_parquet(tmp_path / "v.parquet")
    backbone = open_backbone(f"table:{tmp_path / 'v.parquet'}")
    assert np.array_equal(backbone.encode([Item("x/a")], [0])[0][0], VALUES[1:2])


def test_many_rows_an_utterance_are_frames_in_their_order(tmp_path: Path) -> None:
    path = save(tmp_path / "v.npz", ["b", "a", "b"], VALUES)
    backbone = open_backbone(f"table:{path}", modality="text")
    assert (backbone.info.layers[0].rows, backbone.info.frame_s, backbone.info.modality) == ("frame", None, "text")
    assert np.array_equal(backbone.encode([Item("x/b")], [0])[0][0], VALUES[[0, 2]])
    check_backbone(backbone, [Item("x/b"), Item("x/a")])
    ids = np.random.default_rng(0).choice(["a", "b", "c"], 500)
    backbone = open_backbone(f"table:{save(tmp_path / 'long.npz', list(ids), np.arange(500.0)[:, None])}")
    assert np.array_equal(backbone.encode([Item("b")], [0])[0][0][:, 0], np.flatnonzero(ids == "b"))


def test_what_is_missing_or_not_finite_is_refused_by_row(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, 2] = np.nan
    backbone = open_backbone(f"table:{save(tmp_path / 'v.csv', values=values)}")
    with pytest.raises(DataError, match="no row for this utterance"):
        backbone.encode([Item("x/nobody")], [0])
    with pytest.raises(DataError, match="not finite"):
        backbone.encode([Item("x/b")], [0])
    assert np.array_equal(backbone.encode([Item("x/a")], [0])[0][0], values[1:2])


def test_identity_follows_content_and_columns(tmp_path: Path) -> None:
    first = describe_backbone(f"table:{save(tmp_path / 'a.npz')}")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert describe_backbone(f"table:{tmp_path / 'b.npz'}").identity == first.identity
    assert describe_backbone(f"table:{save(tmp_path / 'c.npz', values=VALUES + 1)}").identity != first.identity
    save(tmp_path / "b.npz", values=VALUES[:, :3])
    assert describe_backbone(f"table:{tmp_path / 'b.npz'}").layers[0].dim == 3  # a file that changed is read again


def test_columns_are_named_where_they_are_not_clear(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    np.savez(path, who=np.array(IDS), where=np.array(["x", "y", "z"]), first=VALUES, second=VALUES + 1)
    with pytest.raises(ConfigError, match="2 candidates.*who, where.*'id'"):
        describe_backbone(f"table:{path}")
    with pytest.raises(ConfigError, match="2 candidates.*first, second.*'values'"):
        describe_backbone(f"table:{path}", id="who")
    with pytest.raises(ConfigError, match="'third' is not a"):
        describe_backbone(f"table:{path}?id=who&values=third")
    backbone = open_backbone(f"table:{path}?id=who&values=second")
    assert np.array_equal(backbone.encode([Item("x/a")], [0])[0][0], VALUES[1:2] + 1)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no file 'nowhere\.npz'"):
        describe_backbone(f"table:{tmp_path / 'nowhere.npz'}")
    with pytest.raises(ConfigError, match="needs a file"):
        describe_backbone("table")
    (tmp_path / "v.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"'\.txt' are not read.*\.parquet"):
        describe_backbone(f"table:{tmp_path / 'v.txt'}")
    for suffix in (".npz", ".parquet"):
        (tmp_path / f"text{suffix}").write_text("this is a note")
        with pytest.raises(DataError, match="This is not"):
            describe_backbone(f"table:{tmp_path / f'text{suffix}'}")
    np.savez(tmp_path / "objects.npz", utterance=np.array(["a", None], dtype=object), vectors=VALUES[:2])
    with pytest.raises(DataError, match="plain arrays"):
        describe_backbone(f"table:{tmp_path / 'objects.npz'}")
    np.savez(tmp_path / "uneven.npz", utterance=np.array(["a", "b"]), vectors=VALUES)
    with pytest.raises(DataError, match="2 ids and an array of 3 x 4"):
        describe_backbone(f"table:{tmp_path / 'uneven.npz'}")
    (tmp_path / "words.csv").write_text("id,word\na,yes\n")
    with pytest.raises(DataError, match="neither"):
        describe_backbone(f"table:{tmp_path / 'words.csv'}")
    (tmp_path / "head.csv").write_text("id,f0\n")
    with pytest.raises(DataError, match="no rows"):
        describe_backbone(f"table:{tmp_path / 'head.csv'}")
    pl.DataFrame({"id": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}).write_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="different lengths"):
        describe_backbone(f"table:{tmp_path / 'ragged.parquet'}")
    with pytest.raises(ConfigError, match="'video' is not a modality"):
        describe_backbone(f"table:{save(tmp_path / 'v.npz')}", modality="video")


def test_meld_has_one_utterance_without_audio(corpora_root: Path) -> None:
    path = corpora_root / "meld" / "dev_audio_wav2vec2.npz"
    backbone = open_backbone(f"table:{path}", modality="audio")
    with np.load(path) as archive:
        ids, vectors = archive["utt_id"], archive["wav2vec2_base_ft_768"].astype(np.float32)
    rows = backbone.encode([Item(f"meld/{name}") for name in ids], [0])
    assert np.array_equal(np.concatenate([row[0] for row in rows]), vectors)
    with pytest.raises(DataError, match="no row"):
        backbone.encode([Item("meld/dev_dia110_utt7")], [0])
