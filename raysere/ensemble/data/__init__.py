"""Members of an ensemble: their runs, labels and predictions."""
