"""Imports of a search worker, loaded into idle workers of Ray at the start.

A trial's process then begins at once, while the driver was still reading its own files. pyarrow
stands first: torch before it has crashed processes.
"""

import pyarrow  # noqa: F401
import ray.tune  # noqa: F401
import safetensors.torch  # noqa: F401

import raysere.features.store.store
import raysere.methods.pooled
import raysere.search.actor
import raysere.training.loop  # noqa: F401
