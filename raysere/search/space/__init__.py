"""Search spaces: their grammar, checks and dimensions."""
