"""The training of one trial: data of folds, the loop, metrics."""
