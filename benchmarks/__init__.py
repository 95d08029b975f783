"""Benchmarks: each is a module with ``TITLE`` and ``run() -> dict`` (see
:func:`benchmarks._measure.result`).

``python -m benchmarks [NAME ...]`` runs them, each in a process of its own, writes
``benchmarks/results/NAME.json`` and draws ``docs/performance.md`` from all results. A module that
cannot run here (no GPU, no corpora) returns rows that say why.
"""
