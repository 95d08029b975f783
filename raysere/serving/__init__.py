"""An ensemble over HTTP: limits, decoding in guarded processes, batches across requests, and the Ray Serve application."""
