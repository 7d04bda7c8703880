"""The verbs `demo` and `predict`."""

from __future__ import annotations

import argparse

from fapn_zoo.cli.common import EMBEDDED, load_model


def run_demo(args: argparse.Namespace) -> int:
    """The first thing a newcomer runs: the embedded model on generated scenes and on photos, without any network."""
    from PIL import Image

    from fapn_zoo.data.scenes import generate_scene
    from fapn_zoo.evaluate import evaluate, render
    from fapn_zoo.predict.files import predict_files
    from fapn_zoo.runtime.files import make_folder
    from fapn_zoo.tasks.drawing import save_image

    model = load_model(EMBEDDED, "cpu")
    inputs = args.out / "scenes"
    make_folder(inputs)
    for seed in (1, 2):
        save_image(Image.fromarray(generate_scene(seed).image), inputs / f"scene_{seed}.png")
    summary = predict_files(model, [inputs, *args.photos], args.out)
    for image in summary["images"]:
        print(args.out / image["overlay"])
    report = evaluate(model, f"scenes:{args.scenes}", split="test", weights="embedded")
    print(f"\n{render(report)}")
    return 1 if summary["failed"] else 0


def run_predict(args: argparse.Namespace) -> int:
    from fapn_zoo.predict.files import predict_files

    model = load_model(args.model, args.device)
    names = ("coco", "formats", "task", "tile", "overlap", "batch_size", "amp", "white_level", "exif")
    summary = predict_files(model, args.paths, args.out, **{name: getattr(args, name) for name in names})
    skipped = f", {len(summary['skipped'])} skipped" if summary["skipped"] else ""
    counts = f"{len(summary['images'])} done, {len(summary['failed'])} failed{skipped}"
    print(f"{counts}; see {args.out / 'summary.json'}")
    return 1 if summary["failed"] else 0
