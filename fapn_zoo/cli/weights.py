"""The verbs `convert` and `push`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fapn_zoo.cli.common import Verbs, add_verb

# Arguments that `fapn_zoo.export.push.push` takes under the same names.
OPTIONS = ("license", "example", "revision", "private", "message", "dry_run")


def add(verbs: Verbs) -> None:
    text = "official checkpoints to weights folders, compared after writing"
    verb = add_verb(verbs, "convert", run_convert, text)
    verb.add_argument("source", type=Path, metavar="SRC", help="a file, or a folder of many")
    verb.add_argument("--model", help="name of the model; default: found by file name, else by the tensors")
    verb.add_argument("--out", type=Path, required=True, help="the weights folder; of many, OUT/<name> each")

    verb = add_verb(verbs, "push", run_push, "check a weights folder and upload it to the Hugging Face Hub")
    verb.add_argument("folder", type=Path, help="what training wrote, OUT/model")
    verb.add_argument("repository", help="owner/name; made where it is not there")
    verb.add_argument("--license", help="an id such as apache-2.0, or 'name https://...'; default: config.json's")
    verb.add_argument("--example", help="a photo; it and its overlay are shown on the model's page")
    verb.add_argument("--branch", dest="revision", metavar="BRANCH", help="instead of main; made where it is not there")
    verb.add_argument("--private", action="store_true", help="a new repository is for its owner only")
    verb.add_argument("--message", help="of the commit")
    verb.add_argument("--dry-run", action="store_true", help="check, print what would go up and the card; no network")


def run_convert(args: argparse.Namespace) -> int:
    from fapn_zoo.convert import convert

    results = convert(args.source, args.out, args.model)
    for result in results:
        if result.error is None:
            how = "kept, it was made of" if result.kept else "from"
            print(f"{result.folder}: {result.model} {how} {result.source}")
        else:
            print(f"error: {result.error}", file=sys.stderr)
    failed = sum(result.error is not None for result in results)
    if len(results) > 1:
        print(f"{len(results) - failed} converted or kept, {failed} failed")
    return 1 if failed else 0


def run_push(args: argparse.Namespace) -> None:
    from fapn_zoo.export.push import push

    options = {name: getattr(args, name) for name in OPTIONS}
    print(push(args.folder, args.repository, **options))
