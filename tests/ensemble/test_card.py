"""The model card says what ``ensemble.yaml`` and ``evaluation.json`` say, and nothing of the
machine that it was made on.
"""

from __future__ import annotations

import pytest
import yaml

from raysere.ensemble.saved.card import short_name, write_card

RECORD = {
    "runs": ["first", "second"],
    "languages": ["de", "it"],
    "synthetic": False,
    "task": {"classes": ["anger", "neutral"], "attributes": ["arousal"], "scale": [1, 5]},
    "members": [{"modality": "speech"}, {"modality": "speech+text"}],
    "manifests": ["aa11", "bb22"],
    "licences": {
        "corpora": {"emodb": "free"},
        "backbones": {"hf:/place/of/somebody/models/wavlm": "MIT", "hf:microsoft/wavlm-base": "unknown"},
    },
}
EVALUATION = {
    "split": "test",
    "metric": "uar",
    "n_utterances": 120,
    "n_speakers": 4,
    "ensemble": {"value": 0.81234, "low": 0.7, "high": 0.9},
    "best_single": {"value": None, "low": None, "high": None},
    "seconds": {"value": 3.0},
    "notes": ["one speaker is in both corpora"],
}


def test_the_card_says_what_the_ensemble_is():
    card = write_card(RECORD, EVALUATION)
    _, header, body = card.split("---\n", 2)
    header = yaml.safe_load(header)
    assert (header["language"], header["tags"]) == (["de", "it"], ["speech-emotion-recognition", "ensemble"])
    for line in (
        "# Ensemble of first, second",
        "Classes: anger, neutral.",
        "Attributes: arousal, from 1 to 5.",
        "Hears or reads: speech, text. Members: 2. Languages: de, it.",
        "On the test rows: 120 utterances of 4 speakers; 95 % intervals by speaker.",
        "| | UAR | 95 % |",
        "| ensemble | 0.812 | 0.700 to 0.900 |",
        "| best single | - | - to - |",
        "- one speaker is in both corpora",
        "Fingerprints of the manifests: aa11, bb22.",
        "- corpora: emodb (free)",
        "- backbones: hf:wavlm (MIT); hf:microsoft/wavlm-base (unknown)",
    ):
        assert line in body.splitlines(), line
    assert "95 % intervals by dialogue." in write_card(RECORD, EVALUATION | {"interval": {"unit": "dialogue"}})
    assert "synthetic" not in card
    assert "somebody" not in card
    assert "| seconds" not in card


def test_the_card_of_made_up_speech_says_so():
    card = write_card(RECORD | {"synthetic": True}, EVALUATION)
    assert "synthetic-data" in yaml.safe_load(card.split("---\n", 2)[1])["tags"]
    assert "**Trained on synthetic speech: its answers say nothing about real speakers.**" in card


@pytest.mark.parametrize(
    ("backbone", "short"),
    [
        ("acoustic", "acoustic"),
        ("hf:microsoft/wavlm-base", "hf:microsoft/wavlm-base"),
        ("hf:/place/of/somebody/wavlm", "hf:wavlm"),
        ("hf:./models/wavlm", "hf:wavlm"),
        ("hf:~/wavlm", "hf:wavlm"),
    ],
)
def test_folders_of_a_local_backbone_stay_here(backbone, short):
    assert short_name(backbone) == short
