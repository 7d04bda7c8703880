"""The verb `benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fapn_zoo.cli.common import Verbs, add_device, add_verb

# Arguments that `fapn_zoo.benchmark.benchmark` takes under the same names.
OPTIONS = ("batch", "device", "dtype", "compile", "channels_last", "threads", "rounds", "num_classes", "memory")


def add(verbs: Verbs) -> None:
    verb = add_verb(verbs, "benchmark", run, "latency and its parts, memory and size of models, side by side")
    verb.add_argument("models", nargs="*", metavar="MODEL", help="name, name with a backbone, or weights folder")
    verb.add_argument("--size", action="append", help="of the image, 512 or 512x1024; may be repeated (512x1024)")
    verb.add_argument("--realtime", action="store_true", help="instead of models: the real-time table of FaPN")
    verb.add_argument("--batch", type=int, default=1, help="images per inference (1)")
    add_device(verb)
    verb.add_argument("--dtype", default="fp32", help="fp32, bf16, fp16, or auto: as predict does (fp32)")
    verb.add_argument("--compile", action="store_true", help="by torch.compile; takes minutes before the first result")
    verb.add_argument("--channels-last", action="store_true")
    verb.add_argument("--threads", type=int, help="of the CPU; default: as PyTorch chooses")
    verb.add_argument("--rounds", type=int, default=20, help="timed inferences of each (20)")
    verb.add_argument("--num-classes", type=int, help="for architectures without a label set")
    verb.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    verb.add_argument("--csv", type=Path, help="append a row per model and size here")


def run(args: argparse.Namespace) -> None:
    from fapn_zoo.benchmark import REALTIME, append_csv, benchmark, csv_text, parse_size, render

    if args.realtime == bool(args.models) or (args.realtime and args.size):
        raise ValueError("name models (and sizes), or give --realtime, which has models and sizes of its own")
    sizes = [parse_size(size) for size in args.size or ["512x1024"]]
    jobs = REALTIME if args.realtime else [(model, size) for size in sizes for model in args.models]
    if args.csv is not None:
        csv_text(args.csv)  # a file that cannot take the rows is better known now
    report = benchmark(jobs, progress=True, **{name: getattr(args, name) for name in OPTIONS})
    print(render(report))
    if args.csv is not None:
        append_csv(report, args.csv)
