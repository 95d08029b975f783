"""The demo: a corpus of synthetic speech in three languages."""
