"""The study of layers that two corpora share."""
