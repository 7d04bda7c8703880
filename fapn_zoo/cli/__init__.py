"""The command line. `main` is imported on first use, so that a line of it costs no more than it needs."""

from fapn_zoo.cli.main import main

__all__ = ["main"]
