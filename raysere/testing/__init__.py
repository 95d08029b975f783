"""Checks and toys for packages that add a method, corpus or backbone."""
