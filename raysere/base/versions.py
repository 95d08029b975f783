"""Versions of the packages that shape results."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

PACKAGES = ("ray", "torch", "torchaudio", "transformers", "optuna", "polars", "tensorboard", "numpy", "soundfile", "pyarrow", "pydantic")


def versions() -> dict[str, str]:
    """Versions of Python, raysere and the packages that shape results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in ("raysere", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
