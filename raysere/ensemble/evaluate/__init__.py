"""Held-out answers by protocol, baselines, intervals, claims."""
