"""The command line: main.py joins the verbs; the other files hold their arguments beside what they do."""

from fapn_zoo.cli.main import main

__all__ = ["main"]
