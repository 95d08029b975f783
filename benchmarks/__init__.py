"""Benchmarks: each is a module with ``run() -> dict``; ``python -m benchmarks`` runs them and writes ``benchmarks/results/NAME.json``."""
