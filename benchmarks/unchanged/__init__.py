"""Whether two checkouts of raysere give the same results, bit for bit."""
