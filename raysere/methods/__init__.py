"""How emotion is learned: one file a system, one registry open to other packages (entry-point group ``raysere.methods``)."""

from raysere.registry import Registry

METHODS = Registry("method", "raysere.methods", {"pooled": "raysere.methods.pooled:Pooled"})
