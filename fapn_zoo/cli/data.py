"""The verb `check-data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fapn_zoo.cli.common import Verbs, add_verb


def add(verbs: Verbs) -> None:
    verb = add_verb(verbs, "check-data", run, "missing pairs, wrong sizes, ids out of range; class counts")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--num-classes", type=int, help="needed where there is no classes.json")


def run(args: argparse.Namespace) -> int:
    from fapn_zoo.data.check import check_data

    report = check_data(args.folder, args.num_classes)
    print(report.render())
    return 0 if report.ok else 1
