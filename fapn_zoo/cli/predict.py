"""The verbs `demo` and `predict`."""

from __future__ import annotations

import argparse

from fapn_zoo.cli.common import BLOOD, EMBEDDED, NUCLEI, load_model


def run_demo(args: argparse.Namespace) -> int:
    """The first thing a newcomer runs: the embedded models on drawn pictures and on photos, without any network."""
    from PIL import Image

    from fapn_zoo.data.cells import draw_blood, draw_nuclei
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
    for name, draw in ((NUCLEI, draw_nuclei), (BLOOD, draw_blood)):
        place = args.out / name.rpartition("lite0_")[2]
        make_folder(place)
        save_image(Image.fromarray(draw(3)), place / "drawn.png")
        found = predict_files(load_model(name, "cpu"), [place / "drawn.png"], place)
        print(*(place / image["overlay"] for image in found["images"]))
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
