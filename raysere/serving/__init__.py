"""An ensemble over HTTP: limits, decoders, batches, Ray Serve."""
