"""``raysere init``: a commented experiment for a corpus folder, made from what the folder really holds."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from raysere.base.errors import ConfigError, RaysereError
from raysere.base.files import as_yaml, atomic_write
from raysere.corpora.adapters import CORPORA, load_corpus
from raysere.corpora.labels import CLASS_MAPS

_TEXT = """\
# Experiment for {corpus}: {count} utterances, {speakers} speakers, {minutes:.0f} minutes, {languages}.
# Price it with `raysere plan {file}`, run it with `raysere run {file}`. Every key: `raysere schema experiment`.
name: {name}

corpora:                       # one or more; a label of the corpus is mapped to a class further down
  - {{corpus: {corpus}, path: {path}}}

task:
{task}

# Speakers never cross a split. `out_of_fold` scores each configuration on speaker-disjoint folds; `nested` adds outer test folds
# that no choice of configuration or weight has seen (slower, and the figure to publish); `holdout` uses the corpus's own
# train, dev and test split.
protocol: {protocol}

features:                      # computed once, shared by all trials and all runs
{features}
search:                        # each entry is one search; its first trial is the published default
{searches}
trial: {{cpu: 1, gpu: 0}}        # what one trial occupies; gpu: 0.25 lets four share a card

ensemble: {{family: auto}}       # auto chooses how members are weighed (mean, greedy, convex, stack, ...) on inner speaker folds

seed: 0
"""


_SMALL = 3000  # utterances below which trials are short and want higher learning rates
_SCRIPTED = 0.9  # share of utterances whose sentence occurs in several emotions, from which on words are left out


def write_experiment(path: Path, *, corpus: str, folder: Path, classes: str | None, kind: str, force: bool) -> list[str]:
    """Write the experiment; returns lines to show the user (counts, rejected files, notes of the corpus)."""
    if path.exists() and not force:
        raise ConfigError("This experiment exists already", where=path, remedy="Choose another name, or replace it with --force.")
    adapter = CORPORA.get(corpus)
    loaded = load_corpus(corpus, folder.expanduser())
    manifest, table = loaded.manifest, loaded.manifest.table
    speakers = table["speaker"].n_unique()
    emotions = sorted(table["emotion"].drop_nulls().unique().to_list())
    if kind == "dimensional":
        task = "  kind: dimensional           # arousal, valence, dominance, scored by the concordance correlation (CCC)"
    else:
        chosen = classes or _fitting_map(adapter.classes, corpus, table) or "[" + ", ".join(map(as_yaml, emotions)) + "]"
        task = (
            f"  kind: {kind}\n  classes: {chosen}           # a class map, a list of labels, or label: class\n"
            f"                               # labels here: {', '.join(map(as_yaml, emotions)) or 'none'}\n"
            "  metric: uar                  # or macro_f1, accuracy"
        )
    splits = table.drop_nulls("split").filter(pl.col("split") != "unlabelled").group_by("speaker").agg(pl.col("split").n_unique())
    own_test = "test" in table["split"].drop_nulls().unique().to_list()
    recur = splits.height > 0 and (splits["split"] > 1).any()  # speakers in two parts of the corpus's own split
    if speakers < 2:
        raise ConfigError(f"The corpus has {speakers} speaker, so no split can keep speakers apart", where=folder)
    protocol = f"{{kind: out_of_fold, folds: {min(5, speakers) if speakers > 12 else 'leave_one_speaker_out'}}}"
    if own_test:
        protocol = "{kind: holdout, by: dialogue}    # speakers recur in this corpus's own split" if recur else "{kind: holdout}"
    features, searches = _features(table)
    text = _TEXT.format(
        corpus=corpus,
        count=table.height,
        speakers=speakers,
        minutes=(table["duration_s"].sum() or 0) / 60,
        languages=", ".join(map(as_yaml, sorted(table["language"].unique()))),
        file=path,
        name=path.stem,
        path=as_yaml(str(folder.expanduser().resolve())),
        task=task,
        protocol=protocol,
        features=features,
        searches=searches,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    lines = [f"{corpus}: {table.height} utterances, {speakers} speakers, {len(emotions)} labels ({', '.join(emotions)})"]
    lines += [f"Rejected: {row['path']}: {row['reason']}" for row in loaded.rejected.head(20).to_dicts()]
    return [*lines, *(f"Note: {note}" for note in manifest.notes)]


def _fitting_map(default: str, corpus: str, table: pl.DataFrame) -> str | None:
    """The corpus's own class map, or the first one named after it, all of whose classes occur in the table."""
    for name in [default, *sorted(name for name in CLASS_MAPS if name.startswith(corpus.split("-")[0]))]:
        if name in CLASS_MAPS:
            try:
                labels, _ = CLASS_MAPS[name].apply(table)
            except RaysereError:
                continue
            if set(CLASS_MAPS[name].classes) <= set(labels):
                return name
    return None


def _features(table: pl.DataFrame) -> tuple[str, str]:
    """The lines of ``features`` and ``search`` that suit what the corpus has: audio, words, and words that can tell anything."""
    features, searches = [], []
    small = table.height < _SMALL
    if table["path"].null_count() < table.height:
        space = "pooled_quick" if small else "pooled"
        features += ["  acoustic: {backbone: acoustic}"]
        searches += [f"  - {{space: {space}, features: acoustic, trials: 30}}"]
        features += [
            '  # speech: {backbone: "hf:microsoft/wavlm-large@REVISION", layers: all}    # a pretrained encoder, by revision or folder'
        ]
        searches += [f"  # - {{space: {space}, features: speech, trials: 60}}"]
    if table["transcript"].null_count() < table.height:
        told = table.drop_nulls(["transcript", "emotion"])
        classes = told.group_by("transcript").agg(pl.col("emotion").n_unique(), pl.len())
        shared = classes.filter(pl.col("emotion") > 1)["len"].sum() / max(told.height, 1)
        scripted = shared > _SCRIPTED
        mark = "# " if scripted else ""
        why = "every sentence is spoken in several emotions, so words can tell nothing" if scripted else "hashed words and characters"
        features += [f"  {mark}words: {{backbone: hashed}}    # {why}"]
        searches += [f"  {mark}- {{space: pooled_text, features: words, trials: 15}}"]
    return "\n".join(features) + "\n", "\n".join(searches) + "\n"
