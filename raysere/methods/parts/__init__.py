"""Parts that several methods share: streams, fusion, heads."""
