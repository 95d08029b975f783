"""The quantized shared codebook with InfoLoss."""
