"""Which searched parameters mattered: Optuna's PED-ANOVA over the finished trials of a study."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl

_FEWEST = 8  # with fewer trials every ranking is noise


def parameter_importance(board: pl.DataFrame, prefix: str = "params.") -> dict[str, float]:
    """Importance (summing to 1) of each parameter that varies and is set in every scored trial; {}
    where there are too few trials.

    Args:
        board: leaderboard rows of one study, with ``score`` and ``params.*`` columns.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    scored = board.filter(pl.col("score").is_not_null() & pl.col("status").is_in(["done", "stopped"]))
    distributions: dict[str, BaseDistribution] = {}
    for column in (name for name in scored.columns if name.startswith(prefix)):
        series = scored[column]
        if series.null_count() or series.n_unique() < 2:
            continue
        name = column.removeprefix(prefix)
        if series.dtype.is_numeric():
            low, high = float(series.min()), float(series.max())  # type: ignore[arg-type]
            distributions[name] = FloatDistribution(low, high, log=low > 0 and high / low >= 50)
        elif series.dtype in (pl.String, pl.Boolean):
            distributions[name] = CategoricalDistribution(sorted(series.unique().to_list()))
    if scored.height < _FEWEST or not distributions:
        return {}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for row in scored.iter_rows(named=True):
            values: dict[str, Any] = {
                name: float(row[prefix + name]) if isinstance(dist, FloatDistribution) else row[prefix + name]
                for name, dist in distributions.items()
            }
            study.add_trial(create_trial(params=values, distributions=distributions, value=row["score"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    finally:
        optuna.logging.set_verbosity(level)
    return {name: value for name, value in found.items() if value == value}
