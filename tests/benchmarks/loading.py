"""Time and memory of loading Swin-L from a warm cache, against safetensors' `load_file` and `load_state_dict`.

    python tests/benchmarks/loading.py [--csv hub/results/loading.csv]

The folder is the official one as `create_model(name, pretrained=True)` keeps it in its cache, made here of random
weights. Each measurement is a process of its own, the ways in turn, medians over the rounds; imports are not counted.
"plain" builds the model and loads; "plain, model given" is its second part alone, for a model that was built before.
The second time includes one pass over all weights, because ours stay in the mapped file until they are read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from table import write_csv

NAME = "maskformer_fapn_swin_l_ade20k"
WAYS = ("ours", "plain")
COLUMNS = (
    "way",
    "seconds",
    "with_first_read",
    "peak_mib",
    "time_ratio",
    "memory_ratio",
    "rounds",
    "torch",
    "commit",
    "command",
)


def measure(way: str, cache: str) -> dict[str, float]:
    """Seconds and peak MiB above what the imports took, in this process."""
    import resource
    import time

    import torch
    from safetensors.torch import load_file

    import fapn_zoo
    from fapn_zoo import model as parts
    from fapn_zoo.modules import backbones  # noqa: F401  (timm and all: imports are not what is measured)
    from fapn_zoo.zoo.registry import get_spec

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, start = peak(), time.perf_counter()
    if way == "ours":
        model = fapn_zoo.create_model(NAME, pretrained=True, cache_dir=cache)
        middle = start
    else:
        model = parts.build(get_spec(NAME)[0])
        middle = time.perf_counter()
        model.load_state_dict(load_file(Path(cache) / "official" / f"{NAME}.paper" / "model.safetensors"))
    end = time.perf_counter()
    total = sum(p.double().sum().item() for p in model.parameters())  # reads every weight: a mapped file must come in
    assert torch.isfinite(torch.tensor(total))
    return {"seconds": end - start, "load": end - middle, "read": time.perf_counter() - end, "peak": peak() - before}


def fill_cache(cache: Path) -> None:
    """The official weights folder of `NAME`, of random weights, with the record that its download would leave."""
    from fapn_zoo import create_model
    from fapn_zoo.convert import official
    from fapn_zoo.weights.digests import file_digest
    from fapn_zoo.zoo.registry import get_spec

    spec = get_spec(NAME)[0]
    weights = spec.weights["paper"]
    folder = cache / "official" / f"{NAME}.paper"
    create_model(NAME).save(folder, license=weights.license, source=weights.location)
    (folder / official.RECORD).write_text(
        json.dumps(
            {
                "url": official.address(weights),
                "converter": official.CONVERTER,
                "sha256": file_digest(folder / "model.safetensors"),
                "sizes": {path.name: path.stat().st_size for path in folder.iterdir()},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        way, cache = args.measure
        print(json.dumps(fill_cache(Path(cache)) if way == "fill" else measure(way, cache)))
        return
    runs = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        child("fill", cache)  # not here, since the peak of a process is handed on to its children
        for _ in range(args.rounds):
            for way in WAYS:
                runs[way].append(child(way, cache))
    report(runs, args)


def child(way: str, cache: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", way, cache],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout)


def report(runs: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    import torch

    from fapn_zoo.runtime.provenance import git_commit

    def median(way: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[way])

    table = [
        (way, median(name, key), median(name, "read"), median(name, "peak"))
        for way, name, key in (
            ("ours", "ours", "seconds"),
            ("plain", "plain", "seconds"),
            ("plain, model given", "plain", "load"),
        )
    ]
    rows = []
    for way, seconds, read, peak in table:
        rows.append(
            dict(
                zip(
                    COLUMNS,
                    (
                        way,
                        f"{seconds:.3f}",
                        f"{seconds + read:.3f}",
                        f"{peak:.0f}",
                        f"{table[0][1] / seconds:.2f}",
                        f"{table[0][3] / peak:.2f}",
                        args.rounds,
                        torch.__version__,
                        git_commit(),
                        f"tests/benchmarks/loading.py --rounds {args.rounds}",
                    ),
                    strict=True,
                )
            )
        )
        print(
            f"{way:<20} {seconds:7.3f} s ({seconds + read:.3f} s with a first read)  {peak:6.0f} MiB   ours / this: "
            f"{table[0][1] / seconds:5.2f} in time, {table[0][3] / peak:5.2f} in memory"
        )
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
