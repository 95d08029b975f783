"""The experiments behind ``docs/accuracy_library.md``, as a user would write them, and what was
expected of each before it was measured.
"""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.data import encoder, settings

LIBRARIES = ("emovo", "ravdess")
SPACES = ("pooled_small", "pooled_quick")
EACH = 16  # trials of each space on each feature in each outer fold: 64 members
WINDOW = "clip"  # of the encoder
PROTOCOLS = {  # where another one than that of the accuracy study is enough: all 24 speakers are tested, eight at a time
    "ravdess": {"outer": [[f"ravdess/{actor:02d}" for actor in range(first, first + 8)] for first in (1, 9, 17)], "inner": 4},
}

OBJECTIVES = ("score", "ensemble_gain")
GAIN_CORPUS = "emovo"
GAIN_OUTER = [["emovo/f1", "emovo/m1"], ["emovo/f2", "emovo/m2"], ["emovo/f3", "emovo/m3"]]
GAIN_SEEDS = (0, 1, 2)
GAIN_TRIALS = 24  # in each outer fold; the first ten of them are the same under both objectives

#: Written and committed before anything of the study was run, for budgets that were then cut:
#: RAVDESS to three outer folds, the comparison of objectives to 24 trials and three seeds, the
#: shuffles to four.
EXPECTED = {
    "library": """Both libraries hold weak members (half of them hear no encoder, a third or more are stopped early), so I expect the
plain mean below the ensemble on both corpora: EMOVO .62 against .66, RAVDESS .78 against .82. RAVDESS has 24 speakers: its intervals
over mean and vote should exclude 0; those over the forest perhaps (+.015, about as wide), since the forest reads the best 12 members
alone. On EMOVO (6 speakers) mean and vote perhaps, the forest hardly. The best single member should be .02 to .04 behind on RAVDESS and
level on EMOVO; the ensemble is nowhere more than one s.e. below it. `auto` should choose greedy_once or greedy in most outer folds.""",
    "shuffled": """Held out at chance (1/7 and 1/8) within about .02, and if anything a little below it, because a class that is rare among
the held-out rows is frequent among the others. In sample .03 to .06 above chance: 64 members to choose from, 500 to 600 rows.""",
    "ablation": """Nothing but the members matters by more than .01: calibration +.005, bags 0, offsets 0, the choice of the family +-.01
around the best fixed one and clearly better than always the average. Encoder members alone reach the whole within .01, acoustic ones
alone are .15 to .2 behind. 8 members lose .01 to .02 to 64, 32 nothing that can be told. The choice of a family costs most of the
seconds, the bags most of those.""",
    "gain": """No difference that four seeds can show: within +-.01, the spread over seeds .015. Ten of the 20 trials of a lane are spread
over the space under either objective, and the rest mostly look for what the encoder does well. If anything, gain keeps more members of
the weak kinds and the best single member gets a little worse.""",
}

#: What was found, in words; the tables come from the results.
FOUND: dict[str, str] = {
    "library": """On EMOVO the ensemble is ahead of the best single member, the plain average, the
majority vote and the forest, with intervals that exclude 0, and level with the mean of two systems
and the linear meta-classifier. On RAVDESS it is ahead of the vote. It is ahead of the plain average
by .029, but that interval ends at 0; the forest and all others are level with it. Both libraries
were run three times, each time with the procedure as it then was: EMOVO .675, .696, .680, RAVDESS
(run twice) .822, .818. The first procedure took single members, because with five speakers to
choose by nearly everything is within a standard error. The place of the single member was changed
after looking at these test speakers, so EMOVO confirms nothing of that change. The last change of
the pull on class biases (docs/log.md) was set on other runs; here it costs .016 and .004, which
neither corpus can tell from nothing.""",
    "shuffled": """Held out, UAR is at chance on average over the shuffles, with a wide spread. An
interval over the five speakers of a pool is too narrow and may exclude chance. In sample, UAR is
above chance on average only, not in every shuffle. (The members were trained with the true labels;
the shuffled labels are those that calibrate, choose and weigh the members.)""",
    "ablation": """As expected, nothing matters but the members, and the choice of a family against
always the plain average. Every other part is level with leaving it out, on both corpora. Choosing a
family costs at most .003 against the best fixed family. Calibration is +.012 on RAVDESS and -.012
on EMOVO, neither certain. Sixteen members are .013 to .019 short of 64, and eight .08 to .12, more
than expected. The bags cost half of the seconds and gain nothing here.""",
    "gain": """No difference, as expected. Trials that search for the ensemble are worse by
themselves (-.028 on development rows), and their ensemble is level with that of trials that search
for their own score.""",
}


def features() -> dict[str, Any]:
    """The two backbones: raysere's own acoustic features and the pretrained encoder."""
    return {"acoustic": {"backbone": "acoustic"}, "speech": encoder(WINDOW)}


def library(corpus: str, workers: int) -> dict[str, Any]:
    """Two spaces on two backbones:

    64 members of each outer fold, as the shipped spaces make them.
    """
    shared = settings(corpus)
    return {
        **shared,
        "name": f"library-{corpus}",
        "protocol": {**shared["protocol"], **PROTOCOLS.get(corpus, {})},
        "features": features(),
        "search": [{"space": space, "features": heard, "trials": EACH} for space in SPACES for heard in ("acoustic", "speech")],
        "trial": {"concurrent": workers},
        "ensemble": {"family": "auto"},
    }


def gain(objective: str, seed: int, workers: int) -> dict[str, Any]:
    """One search of the comparison of objectives: layers of the encoder, pairs of speakers as test
    rows.
    """
    return {
        **settings(GAIN_CORPUS),
        "name": f"{objective}-{seed}",
        "features": {"speech": encoder(WINDOW)},
        "search": [{"space": "pooled_small", "features": "speech", "trials": GAIN_TRIALS, "objective": objective}],
        "protocol": {"kind": "nested", "by": "speaker", "outer": GAIN_OUTER, "inner": 4},
        "trial": {"concurrent": workers},
        "ensemble": {"family": "auto", "recipes": []},
        "seed": seed,
    }
