"""The sentence that says what an evaluation supports (docs/methods.md 4.14)."""

from __future__ import annotations

from typing import Any

#: System to how people call it.
LABELS = {
    "ensemble": "ensemble",
    "best_single": "best single member",
    "average": "plain average",
    "majority_vote": "majority vote",
    "two_system_mean": "mean of two systems",
    "forest": "random-forest stack",
    "meta_soup": "linear meta-classifier and soup",
}
_HELD = {"test": "test", "out_of_fold": "cross-fitted", "nested": "nested"}


def claim(evaluation: dict[str, Any]) -> str:
    """One sentence: which recipes the ensemble beats on this library, with each difference and its
    interval, and which it does not.

    A recipe is beaten where the lower bound of the paired 95 % interval (over speakers, or what
    else the splits are by) is above 0.
    """
    beaten: list[str] = []
    behind: list[str] = []
    open_: list[str] = []
    for name, entry in evaluation["difference"].items():
        label = f"the {LABELS.get(name.removeprefix('ensemble - '), name)}"
        value, low, high = entry["value"], entry["low"], entry["high"]
        if low is None or high is None:
            open_.append(f"{label} (no interval)")
            continue
        shown = f"{label} ({value:+.3f} [{low:+.3f}, {high:+.3f}])"
        (beaten if low > 0 else behind if high < 0 else open_).append(shown)
    kind = _HELD.get(evaluation["split"], evaluation["split"])
    library = f"the library {' + '.join(evaluation['runs'])}" + (" (synthetic speech)" if evaluation.get("synthetic") else "")
    parts = []
    if beaten:
        parts.append(f"beats {_list(beaten)}")
    if behind:
        parts.append(f"is behind {_list(behind)}")
    if open_:
        parts.append(f"cannot be told apart from {_list(open_)}")
    unit = (evaluation.get("interval") or {}).get("unit", "speaker")
    return (
        f"On {library} the ensemble {'; it '.join(parts)}; {kind} differences of {evaluation['metric']} with 95 % intervals over {unit}s."
    )


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
