"""Prosody of the demo corpus, drawn from overlapping class distributions, and simulated raters.

Everything here is a simulation with plausible directions (anger and happiness: faster, higher,
wider, louder; sadness: the reverse, with pauses), tuned so that neither sound nor words decide an
utterance. It says nothing about human speech.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EMOTIONS = ("anger", "happiness", "neutral", "sadness")
CUES = ("rate", "pitch", "range", "loudness", "pause", "effort")
ATTRIBUTES = ("arousal", "valence", "dominance")
NOTE = "demo: synthetic speech (espeak-ng), simulated emotion, raters and traces; its figures say nothing about recognition of real speech."
SCALE = (1.0, 7.0)
RATERS = tuple(f"R{number:02d}" for number in range(1, 11))

# Class means of the cues in units of the spread within a class (SPREAD): so that classes overlap.
MEANS = {
    "anger": np.array([0.5, 0.5, 0.6, 1.3, -0.4, 1.2]),
    "happiness": np.array([0.6, 1.1, 1.1, 0.4, -0.4, 0.2]),
    "neutral": np.zeros(6),
    "sadness": np.array([-1.0, -0.6, -0.9, -0.9, 0.9, -0.8]),
}
SPREAD = 0.88
# Class means of arousal, valence, dominance on 1 to 7.
AFFECT = {"anger": (5.3, 2.3, 5.3), "happiness": (5.0, 5.6, 4.6), "neutral": (3.6, 4.1, 4.1), "sadness": (2.5, 2.5, 2.8)}
# What a deviation of the cues from the class mean does to arousal, valence and dominance.
RESPONSE = np.array([[0.30, 0.20, 0.20, 0.35, -0.15, 0.25], [0.05, 0.20, 0.25, -0.05, 0.0, -0.15], [0.10, -0.10, 0.05, 0.30, -0.20, 0.25]])
WORD_VALENCE = {"anger": -0.5, "happiness": 0.5, "neutral": 0.0, "sadness": -0.5}

WORDS_CARRY = 0.72  # share of utterances whose words carry an emotion ...
WORDS_AGREE = 0.82  # ... and how often it is the one that the voice has


@dataclass(frozen=True)
class Prosody:
    """One utterance's cues (6,), in units in which 1 is clearly audible, and its arousal, valence
    and dominance (3,) on 1 to 7.
    """

    cues: np.ndarray
    affect: np.ndarray


@dataclass(frozen=True)
class Style:
    """How a speaker expresses emotion: overall strength, and how much of it through each cue (6,)."""

    strength: float = 1.0
    cues: np.ndarray = field(default_factory=lambda: np.ones(len(CUES)))


def draw_prosody(emotion: str, style: Style, words: str | None, rng: np.random.Generator) -> Prosody:
    """Cues from the class's distribution as this speaker has it; the affect follows the class and
    the cues actually drawn.
    """
    mean = style.strength * style.cues * MEANS[emotion]
    deviation = SPREAD * rng.standard_normal(len(CUES))
    neutral = np.array(AFFECT["neutral"])
    affect = neutral + np.sqrt(style.strength) * (np.array(AFFECT[emotion]) - neutral) + RESPONSE @ deviation
    affect[1] += WORD_VALENCE.get(words or "", 0.0)
    return Prosody(mean + deviation, np.clip(affect + 0.2 * rng.standard_normal(3), *SCALE))


def draw_words(emotion: str, rng: np.random.Generator) -> str | None:
    """The emotion that the words carry, or None for words that go with every emotion."""
    if rng.random() >= WORDS_CARRY:
        return None
    if rng.random() < WORDS_AGREE:
        return emotion
    return str(rng.choice([other for other in EMOTIONS if other != emotion]))


def draw_votes(emotion: str, prosody: Prosody, words: str | None, rng: np.random.Generator) -> list[dict[str, object]]:
    """Three to five raters who hear the cues, read the words, and know neither for certain;
    attributes in steps of 0.5 on 1 to 7.
    """
    heard_as = [-0.25 * np.sum((prosody.cues - MEANS[other]) ** 2) for other in EMOTIONS]
    score = np.array([fit + 1.5 * (other == emotion) + 0.6 * (other == words) for fit, other in zip(heard_as, EMOTIONS, strict=True)])
    chance = np.exp(score - score.max())
    chance /= chance.sum()
    votes: list[dict[str, object]] = []
    for rater in sorted(rng.choice(len(RATERS), size=int(rng.integers(3, 6)), replace=False)):
        heard = np.clip(prosody.affect + rater_bias(int(rater)) + 0.6 * rng.standard_normal(3), *SCALE)
        attributes = dict(zip(ATTRIBUTES, (np.round(2 * heard) / 2).tolist(), strict=True))
        votes.append({"rater": RATERS[rater], "emotion": str(rng.choice(EMOTIONS, p=chance)), **attributes})
    return votes


def draw_traces(times: np.ndarray, affect: np.ndarray, rng: np.random.Generator, *, raters: int = 3) -> list[dict[str, object]]:
    """Continuous ratings of a passage.

    Args:
        times: s (T,), evenly spaced. affect: (T, 3), what there is to hear at each time.

    Each rater follows late (0.4 to 1.2 s) and slowly (time constant 0.8 s), with own bias, own use
    of the scale and a wandering hand.
    """
    step = float(times[1] - times[0])
    follow = 1 - np.exp(-step / 0.8)
    traces: list[dict[str, object]] = []
    for rater in sorted(rng.choice(len(RATERS), size=raters, replace=False)):
        late = round(rng.uniform(0.4, 1.2) / step)
        heard = affect[np.maximum(np.arange(len(times)) - late, 0)]
        centre, gain = sum(SCALE) / 2, rng.uniform(0.8, 1.15)
        value, wander = heard[0].copy(), np.zeros(3)
        for index, time in enumerate(times):
            value += follow * (heard[index] - value)
            wander += -0.1 * wander + 0.1 * rng.standard_normal(3)
            shown = np.clip(centre + gain * (value - centre) + rater_bias(int(rater)) + wander, *SCALE)
            traces += [
                {"rater": RATERS[rater], "attribute": name, "time_s": float(time), "value": round(float(one), 3)}
                for name, one in zip(ATTRIBUTES, shown, strict=True)
            ]
    return traces


def rater_bias(rater: int) -> np.ndarray:
    """A rater's habit of rating higher or lower (3,), the same in all demo corpora."""
    return 0.3 * np.random.default_rng([rater, 20]).standard_normal(3)
