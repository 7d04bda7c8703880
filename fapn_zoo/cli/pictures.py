"""The verbs `visualize` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fapn_zoo.cli.common import MODEL, Verbs, add_device, add_verb, load_model


def add(verbs: Verbs) -> None:
    text = "pictures of what a neck does: features before and after alignment"
    verb = add_verb(verbs, "visualize", run_visualize, text)
    verb.add_argument("what", choices=("alignment",))
    verb.add_argument("model", help=f"{MODEL}, with a fapn neck")
    verb.add_argument("image", help="file or URL")
    verb.add_argument("--out", type=Path, default=Path("alignment"), help="output folder (alignment)")
    add_device(verb)

    text = "predictions of two models side by side, their errors and differences"
    verb = add_verb(verbs, "compare", run_compare, text)
    verb.add_argument("a", metavar="A", help=MODEL)
    verb.add_argument("b", metavar="B", help="another one with the same classes")
    verb.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, URLs")
    verb.add_argument("--also", action="append", default=[], metavar="MODEL", help="a further model; may be repeated")
    verb.add_argument("--labels", nargs="+", default=[], metavar="PNG", help="of the images, or one folder of them")
    verb.add_argument("--data", help="instead of images: folder, scenes:N, or several joined with ','")
    verb.add_argument("--split", default="test")
    verb.add_argument("--limit", type=int, help="only the first so many images of --data")
    verb.add_argument("--band", type=int, default=3, help="pixels around true boundaries that count as near (3)")
    verb.add_argument("--out", type=Path, default=Path("comparison"), help="output folder (comparison)")
    add_device(verb)


def run_visualize(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import visualize_alignment

    numbers = visualize_alignment(load_model(args.model, args.device), args.image, args.out)
    for name in numbers["files"]:
        print(args.out / name)


def run_compare(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import data_items, image_items, render, side_by_side

    if bool(args.images) == bool(args.data) or (args.data and args.labels):
        raise ValueError("name images (with --labels or without), or give --data")
    names = [args.a, args.b, *args.also]
    if len(set(names)) < len(names):
        raise ValueError(f"a model is named twice: {', '.join(names)}")
    models = {name: load_model(name, args.device) for name in names}
    first = models[args.a]
    if args.data:
        items = data_items(first, args.data, args.split, args.limit)
    else:
        items = image_items(first, args.images, args.labels)
    print(render(side_by_side(models, items, args.out, band=args.band, progress=True)))
    print(f"pictures: {args.out}")
