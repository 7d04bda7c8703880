"""The command line: parses, lets a verb do the work, and turns errors into one line.

verbs.json holds the arguments of the verbs, the other files what they do.
Exit codes: 0 done, 1 an error (or, with `predict` and `check-data`, some input was bad), 2 wrong usage, 130 Ctrl-C,
143 SIGTERM, 129 the terminal was closed, 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from importlib.resources import files
from pathlib import Path

from fapn_zoo import __version__
from fapn_zoo.cli import common, evaluate, models, predict, train
from fapn_zoo.runtime.files import NO_ROOM
from fapn_zoo.runtime.signals import sigterm_as_interrupt

SIGNALLED = 128  # and the number of the signal: what shells report of a program that a signal has ended
PIPE_CLOSED = SIGNALLED + 13  # by SIGPIPE
FILES = {"evaluate": evaluate, "models": models, "predict": predict, "train": train}
# what verbs.json calls by name
NAMED = {"Path": Path, "int": int, "float": float, "size": common.size, "scales": common.scales, "settings": train.Help}


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)  # what cannot be written is found here, and not when the interpreter ends
    except OSError as error:
        closed = isinstance(error, BrokenPipeError)
        if not closed:
            print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # the interpreter will try once more to write what is left
            os.dup2(nowhere, stream)
        return PIPE_CLOSED if closed else 1


def _run(argv: list[str] | None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "numba", "timm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with sigterm_as_interrupt():
            return args.run(args) or 0
    except KeyboardInterrupt as stop:
        print(f"interrupted{': ' if str(stop) else ''}{stop}", file=sys.stderr)
        return SIGNALLED + getattr(stop, "number", signal.SIGINT)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ArithmeticError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None and len(error.args) > 1:
            raise  # as the system says it, of a stream: errors of files name these
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fapn-zoo", description="Dense image prediction from one string.")
    parser.add_argument("--version", action="version", version=f"fapn-zoo {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    table = json.loads((files("fapn_zoo") / "cli" / "verbs.json").read_text(encoding="utf-8"))["verbs"]
    for name, row in table.items():
        own_help = any("-h" in flags for flags, _ in row["arguments"])
        style = argparse.RawDescriptionHelpFormatter if own_help else argparse.HelpFormatter
        texts = {"help": row["help"], "description": row["help"]}
        verb = verbs.add_parser(name, **texts, add_help=not own_help, formatter_class=style)
        for flags, options in row["arguments"]:
            named = {key: NAMED.get(value, value) for key, value in options.items() if key in ("type", "action")}
            verb.add_argument(*([flags] if isinstance(flags, str) else flags), **options | named)
        verb.set_defaults(run=getattr(FILES[row["file"]], f"run_{name.replace('-', '_')}"))
    return parser
