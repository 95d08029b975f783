"""``python -m raysere``: the command line."""

from raysere.cli.main import main

main()
