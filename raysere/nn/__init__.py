"""Functions and modules on tensors: losses, pooling, attention, codebooks."""
