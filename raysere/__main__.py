"""``python -m raysere``: the command line."""

from raysere.cli import main

main()
