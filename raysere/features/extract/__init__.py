"""Extraction: Ray actors encode each utterance once."""
