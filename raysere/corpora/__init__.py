"""Corpora: the manifest and its checks, labels, splits."""
