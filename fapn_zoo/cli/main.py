"""The command line: parses, calls the room that does the work, and turns errors into one line.

Exit codes: 0 done, 1 an error (or, with `predict` and `check-data`, some input was bad), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from fapn_zoo import __version__
from fapn_zoo.cli.evaluate import add_arguments as add_eval_arguments
from fapn_zoo.cli.evaluate import run as run_eval
from fapn_zoo.zoo.registry import get_spec, list_models

EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "numba", "timm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt as stop:
        print(f"interrupted{': ' if str(stop) else ''}{stop}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fapn-zoo", description="Dense image prediction from one string.")
    parser.add_argument("--version", action="version", version=f"fapn-zoo {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = _verb(verbs, "demo", _demo, "predict on two generated scenes and any photos, and score the embedded model")
    verb.add_argument("photos", nargs="*", help="files or folders")
    verb.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures (demo)")
    verb.add_argument("--scenes", type=int, default=20, help="generated scenes to score on (20)")

    verb = _verb(verbs, "list", _list, "names of the models, and where their weights come from")
    verb.add_argument("pattern", nargs="?", default="*", help="wildcards, quoted")
    verb.add_argument("--pretrained", action="store_true", help="only those with weights")
    verb.add_argument("--task", choices=("semantic", "panoptic", "instance"), help="only those of this task")

    verb = _verb(verbs, "info", _info, "one model, or (without a name) versions and the deformable convolution in use")
    verb.add_argument("model", nargs="?")

    verb = _verb(verbs, "predict", _predict, "an overlay and a label PNG for every image, and summary.json")
    verb.add_argument("paths", nargs="+", help="files, folders, URLs")
    verb.add_argument("--model", default=EMBEDDED, help=f"name, hf-hub:..., or weights folder ({EMBEDDED})")
    verb.add_argument("--out", type=Path, default=Path("predictions"), help="output folder (predictions)")
    verb.add_argument("--task", help="semantic, panoptic or instance; default: the model's")
    verb.add_argument("--tile", type=_size, help="window in pixels, 512 or 512x1024, for large images")
    verb.add_argument("--batch-size", type=int, default=1)
    verb.add_argument("--amp", default="auto", help="bf16, fp16 or no; auto: bf16 where the processor is fast in it")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")

    verb = _verb(verbs, "check-data", _check_data, "missing pairs, wrong sizes, ids out of range; class counts")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--num-classes", type=int, help="needed where there is no classes.json")

    verb = _verb(verbs, "train", _train, "train by a recipe; key=value changes a setting")
    verb.add_argument("recipe", help="a .py file or the name of one in recipes/")
    verb.add_argument("settings", nargs="*", metavar="key=value")

    text = "mean IoU, per-class IoU and pixel accuracy on a data set; several models side by side"
    add_eval_arguments(_verb(verbs, "eval", _eval, text), _size)

    _weights_verbs(verbs)
    return parser


def _weights_verbs(verbs) -> None:
    verb = _verb(verbs, "convert", _convert, "official checkpoints to weights folders, compared after writing")
    verb.add_argument("source", type=Path, metavar="SRC", help="a file, or a folder of many")
    verb.add_argument("--model", help="name of the model; default: found by file name, else by the tensors")
    verb.add_argument("--out", type=Path, required=True, help="the weights folder; of many, OUT/<name> each")

    verb = _verb(verbs, "visualize", _visualize, "pictures of what a neck does: features before and after alignment")
    verb.add_argument("what", choices=("alignment",))
    verb.add_argument("model", help="name, hf-hub:..., or weights folder, with a fapn neck")
    verb.add_argument("image", help="file or URL")
    verb.add_argument("--out", type=Path, default=Path("alignment"), help="output folder (alignment)")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")

    verb = _verb(verbs, "compare", _compare, "predictions of two models side by side, their errors and differences")
    verb.add_argument("a", metavar="A", help="name, hf-hub:..., or weights folder")
    verb.add_argument("b", metavar="B", help="another one with the same classes")
    verb.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, URLs")
    verb.add_argument("--also", action="append", default=[], metavar="MODEL", help="a further model; may be repeated")
    verb.add_argument("--labels", nargs="+", default=[], metavar="PNG", help="of the images, or one folder of them")
    verb.add_argument("--data", help="instead of images: folder, scenes:N, or several joined with ','")
    verb.add_argument("--split", default="test")
    verb.add_argument("--limit", type=int, help="only the first so many images of --data")
    verb.add_argument("--band", type=int, default=3, help="pixels around true boundaries that count as near (3)")
    verb.add_argument("--out", type=Path, default=Path("comparison"), help="output folder (comparison)")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")

    verb = _verb(verbs, "benchmark", _benchmark, "latency and its parts, memory and size of models, side by side")
    verb.add_argument("models", nargs="*", metavar="MODEL", help="name, name with a backbone, or weights folder")
    verb.add_argument("--size", action="append", help="of the image, 512 or 512x1024; may be repeated (512x1024)")
    verb.add_argument("--realtime", action="store_true", help="instead of models: the real-time table of FaPN")
    verb.add_argument("--batch", type=int, default=1, help="images per inference (1)")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    verb.add_argument("--dtype", default="fp32", help="fp32, bf16, fp16, or auto: as predict does (fp32)")
    verb.add_argument("--compile", action="store_true", help="by torch.compile; takes minutes before the first result")
    verb.add_argument("--channels-last", action="store_true")
    verb.add_argument("--threads", type=int, help="of the CPU; default: as PyTorch chooses")
    verb.add_argument("--rounds", type=int, default=20, help="timed inferences of each (20)")
    verb.add_argument("--num-classes", type=int, help="for architectures without a label set")
    verb.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    verb.add_argument("--csv", type=Path, help="append a row per model and size here")

    verb = _verb(verbs, "push", _push, "check a weights folder and upload it to the Hugging Face Hub")
    verb.add_argument("folder", type=Path, help="what training wrote, OUT/model")
    verb.add_argument("repository", help="owner/name; made where it is not there")
    verb.add_argument("--license", help="an id such as apache-2.0, or 'name https://...'; default: config.json's")
    verb.add_argument("--example", help="a photo; it and its overlay are shown on the model's page")
    verb.add_argument("--branch", help="instead of main; made where it is not there")
    verb.add_argument("--private", action="store_true", help="a new repository is for its owner only")
    verb.add_argument("--message", help="of the commit")
    verb.add_argument("--dry-run", action="store_true", help="check, print what would go up and the card; no network")


def _verb(verbs, name: str, run, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=run)
    return verb


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and int(p) for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512 or 512x1024 (height x width)")
    return int(parts[0]), int(parts[-1])


def _demo(args: argparse.Namespace) -> int:
    from fapn_zoo.cli.demo import demo

    text, complete = demo(EMBEDDED, args.photos, args.out, args.scenes)
    print(text)
    return 0 if complete else 1


def _list(args: argparse.Namespace) -> None:
    names = list_models(args.pattern, pretrained=args.pretrained, task=args.task)
    if not names:
        asked = [repr(args.pattern), "--pretrained" * args.pretrained, f"--task {args.task}" if args.task else ""]
        raise ValueError(f"no model matches {' '.join(filter(None, asked))}")
    width = max(map(len, names))
    for name in names:
        spec = get_spec(name)[0]
        sources = ", ".join(weights.origin for weights in spec.weights.values())
        kind = "architecture" if spec.backbone is None else spec.task
        print(f"{name:<{width}}  {kind:<12}  {sources or 'no weights'}")


def _info(args: argparse.Namespace) -> None:
    from fapn_zoo.cli.info import describe_installation, describe_model

    print(describe_installation() if args.model is None else describe_model(args.model))


def _predict(args: argparse.Namespace) -> int:
    from fapn_zoo.predict.files import predict_files

    model = _model(args.model, args.device)
    summary = predict_files(
        model,
        args.paths,
        args.out,
        task=args.task,
        tile=args.tile,
        batch_size=args.batch_size,
        amp=args.amp,
        progress=sys.stderr.isatty(),
    )
    print(f"{len(summary['images'])} done, {len(summary['failed'])} failed; see {args.out / 'summary.json'}")
    return 1 if summary["failed"] else 0


def _check_data(args: argparse.Namespace) -> int:
    from fapn_zoo.data.check import check_data

    report = check_data(args.folder, args.num_classes)
    print(report.render())
    return 0 if report.ok else 1


def _train(args: argparse.Namespace) -> None:
    from fapn_zoo.train.loop import train
    from fapn_zoo.train.settings import load_recipe, parse_overrides

    folder = train(parse_overrides(args.settings, load_recipe(args.recipe)))
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes torchrun started
        print(f"weights folder: {folder}")


def _eval(args: argparse.Namespace) -> None:
    run_eval(args, _model)


def _convert(args: argparse.Namespace) -> int:
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


def _visualize(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import visualize_alignment

    numbers = visualize_alignment(_model(args.model, args.device), args.image, args.out)
    for name in numbers["files"]:
        print(args.out / name)


def _compare(args: argparse.Namespace) -> None:
    from fapn_zoo.visualize import data_items, image_items, render, side_by_side

    if bool(args.images) == bool(args.data) or (args.data and args.labels):
        raise ValueError("name images (with --labels or without), or give --data")
    names = [args.a, args.b, *args.also]
    if len(set(names)) < len(names):
        raise ValueError(f"a model is named twice: {', '.join(names)}")
    models = {name: _model(name, args.device) for name in names}
    first = models[args.a]
    if args.data:
        items = data_items(first, args.data, args.split, args.limit)
    else:
        items = image_items(first, args.images, args.labels)
    print(render(side_by_side(models, items, args.out, band=args.band, progress=sys.stderr.isatty())))
    print(f"pictures: {args.out}")


def _benchmark(args: argparse.Namespace) -> None:
    from fapn_zoo.benchmark import REALTIME, append_csv, benchmark, csv_text, parse_size, render

    if args.realtime == bool(args.models) or (args.realtime and args.size):
        raise ValueError("name models (and sizes), or give --realtime, which has models and sizes of its own")
    sizes = [parse_size(size) for size in args.size or ["512x1024"]]
    if args.csv is not None:
        csv_text(args.csv)  # a file that cannot take the rows is better known now
    report = benchmark(
        REALTIME if args.realtime else [(model, size) for size in sizes for model in args.models],
        batch=args.batch,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        channels_last=args.channels_last,
        threads=args.threads,
        rounds=args.rounds,
        num_classes=args.num_classes,
        memory=not args.no_memory,
        progress=sys.stderr.isatty(),
    )
    print(render(report))
    if args.csv is not None:
        append_csv(report, args.csv)


def _push(args: argparse.Namespace) -> None:
    from fapn_zoo.export.push import push

    done = push(
        args.folder,
        args.repository,
        private=args.private,
        revision=args.branch,
        license=args.license,
        example=args.example,
        message=args.message,
        dry_run=args.dry_run,
    )
    print(done)


def _model(name: str, device: str | None):
    """A model with its weights, on the device. A folder that exists may be given without ``local-dir:``."""
    from fapn_zoo import create_model
    from fapn_zoo.runtime.device import find_device

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    found = find_device(device)
    return create_model(name, pretrained=True).to(found)
