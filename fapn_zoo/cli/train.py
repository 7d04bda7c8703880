"""The verbs `check-data`, `train` and `recipes`."""

from __future__ import annotations

import argparse
from itertools import groupby
from typing import Any

from fapn_zoo.cli.common import speaks
from fapn_zoo.runtime.files import check_writable


class Help(argparse.Action):
    """`--help` with all settings, which are imported only when somebody asks for them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from fapn_zoo.train.settings import describe

        parser.epilog = f"settings with their defaults, which a recipe may change:\n\n{describe()}"
        parser.print_help()
        parser.exit()


def run_check_data(args: argparse.Namespace) -> int:
    from fapn_zoo.data.check import check_data
    from fapn_zoo.data.reading_rules import Reading

    if args.html is not None:
        check_writable(args.html)
    report = check_data(args.data, args.num_classes, reading=Reading(args.white_level, args.exif))
    print(report.render())
    if args.html is not None:
        from fapn_zoo.visualize.data_page import write_page

        write_page(report, args.html)
        print(f"page: {args.html}")
    return 0 if report.ok else 1


def run_train(args: argparse.Namespace) -> None:
    from fapn_zoo.train.loop import train
    from fapn_zoo.train.settings import load_recipe, parse_overrides

    folder = train(parse_overrides(args.settings, load_recipe(args.recipe)))
    if speaks():
        print(f"weights folder: {folder}")


def run_replay(args: argparse.Namespace) -> None:
    from fapn_zoo.train.replay import replay

    for line in replay(args.folder):
        print(line)


def run_recipes(args: argparse.Namespace) -> None:
    from fapn_zoo.train.recipes import list_recipes

    recipes = list_recipes()
    if not recipes:
        raise FileNotFoundError("no recipes: there is no .py file in ./recipes, nor in the package's own")
    width = max(len(path.stem) for path in recipes)
    for folder, paths in groupby(recipes, lambda path: path.parent):
        print(f"{folder}:")
        for path in paths:
            print(f"  {path.stem:<{width}}  {recipes[path]}")
