"""The verbs `demo` and `predict`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fapn_zoo.cli.common import EMBEDDED, MODEL, Verbs, add_device, add_reading, add_verb, load_model, size


def add(verbs: Verbs) -> None:
    text = "predict on two generated scenes and any photos, and score the embedded model"
    verb = add_verb(verbs, "demo", run_demo, text)
    verb.add_argument("photos", nargs="*", help="files or folders")
    verb.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures (demo)")
    verb.add_argument("--scenes", type=int, default=20, help="generated scenes to score on (20)")

    verb = add_verb(verbs, "predict", run_predict, "an overlay and a label PNG for every image, and summary.json")
    verb.add_argument("paths", nargs="+", help="files, folders, URLs")
    verb.add_argument("--model", default=EMBEDDED, help=f"{MODEL} ({EMBEDDED})")
    verb.add_argument("--out", type=Path, default=Path("predictions"), help="output folder (predictions)")
    verb.add_argument("--coco", type=Path, metavar="FILE", help="also a json file of all objects, in COCO's form")
    text = "also a data set in OUT/NAME, for each time it is given: coco, imagefolder, labelme, voc or yolo"
    verb.add_argument("--format", action="append", default=[], metavar="NAME", help=text, dest="formats")
    verb.add_argument("--task", help="semantic, panoptic, instance or detection; default: the model's")
    verb.add_argument("--tile", type=size, help="window in pixels, 512 or 512x1024, for large images")
    verb.add_argument("--overlap", type=float, default=0.25, help="of the windows, 0..0.75 of their size (0.25)")
    verb.add_argument("--batch-size", type=int, default=1)
    verb.add_argument("--amp", default="auto", help="bf16, fp16 or no; auto: bf16 where the processor is fast in it")
    add_reading(verb)
    add_device(verb)


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
