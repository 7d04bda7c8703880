"""Faster and Mask R-CNN beside torchvision's with equal weights, FaPN beside FPN, and Panoptic FPN's merging.

    python tests/benchmarks/rcnn.py --size 512 --threads 2 --csv rcnn_speed.csv
    python tests/benchmarks/rcnn.py --models --merge 800x1333 3000x4000 --csv merge_speed.csv

ResNet-50 on a CPU, one square image, by turns; of every contender the best of the rounds, in seconds of the clock and
of the processor, which other programs disturb less. Manners:

    fp32        float32, from the normalised image to the network's output; torchvision's with its pasted masks
    defaults    ours as `fapn_zoo.predict` runs it, from pixels to a `Result`; torchvision's as above

FaPN has backbone and head of the FPN model, and a neck of its own. With random weights the two would find other numbers
of objects. So both compute all of their own, but choose proposals and detections from the numbers that the FPN model
had for this image in float32. The columns `proposals` and `detections` count them. Threads that wait sleep: a thread
that spins would count as one that works.

Merging makes a panoptic map of 100 masks and a map of 54 classes. The loop over full masks, whose result is the same,
has them pasted before the clock starts; ours pastes what it needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch  # noqa: E402
from table import print_row, run_facts, write_csv
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

import fapn_zoo
from fapn_zoo.benchmark.inference import draw_offsets
from fapn_zoo.postprocess.answers import SoftMasks, pasted
from fapn_zoo.postprocess.merge import merge
from fapn_zoo.runtime.device import device_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys.merging import merged_full, random_case  # noqa: E402
from toys.torchvision_rcnn import twins  # noqa: E402

CLASSES = 80
MEAN, DEVIATION = 127.5, 64.0  # of the pixels


def contenders(kind: str, side: int) -> tuple[dict[str, dict[str, Callable[[], Any]]], dict[str, dict[str, int]]]:
    """By manner and name what is timed; by name how many proposals and detections that has."""
    ours, theirs = twins(kind, CLASSES, (side, side))
    fapn = fapn_zoo.create_model(f"{kind}_fapn", backbone="resnet50", num_classes=CLASSES).eval()
    shared = {key: value for key, value in ours.state_dict().items() if not key.startswith("neck.")}
    fapn.load_state_dict(fapn.state_dict() | shared)
    noise = torch.randn(3, side, side, generator=torch.Generator().manual_seed(1))
    pixels = (noise * DEVIATION + MEAN).round().clamp(0, 255).byte()
    data = {"mean": (MEAN,) * 3, "std": (DEVIATION,) * 3, "channel_order": "rgb", "test_size": side}
    for model in (ours, fapn):
        draw_offsets(model)
        model.spec = dataclasses.replace(model.spec, data=dataclasses.replace(model.data, **data))
    x = (pixels - MEAN) / DEVIATION
    last = x[None].contiguous(memory_format=torch.channels_last)
    counts = {"torchvision": torchvision_counts(theirs, x)} | dict.fromkeys(("fpn", "fapn"), equalise(ours, fapn, last))
    torchvision = {"torchvision": lambda: theirs([x])}
    return {
        "fp32": torchvision | {"fpn": lambda: ours(last), "fapn": lambda: fapn(last)},
        "defaults": torchvision | {"fpn": lambda: ours.predict(pixels), "fapn": lambda: fapn.predict(pixels)},
    }, counts


@torch.inference_mode()
def torchvision_counts(model: nn.Module, x: Tensor) -> dict[str, int]:
    proposals: list[Tensor] = []
    watch = model.rpn.register_forward_hook(lambda *call: proposals.extend(call[-1][0]))
    (found,) = model([x])
    watch.remove()
    return {"proposals": len(proposals[0]), "detections": len(found["boxes"])}


@torch.inference_mode()
def equalise(first: nn.Module, second: nn.Module, x: Tensor) -> dict[str, int]:
    """Makes the two choose from equal numbers, see above; the counts of what is chosen."""
    numbers: dict[str, Any] = {}
    chosen = {}
    for model, part in itertools.product((first, second), ("rpn", "box")):
        branch = getattr(model.head, part)

        def choose(*found: Any, own: Callable = branch.choose, part: str = part) -> Any:
            chosen[part] = own(*numbers.setdefault(part, found))
            return chosen[part]

        branch.choose = choose
    first(x)
    return {"proposals": len(chosen["rpn"][0][0]), "detections": len(chosen["box"][0])}


def mergers(size: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Of 100 objects; an assertion says where the results differ."""
    masks, scores, semantic = random_case(100, size, 54)
    classes, stuff, full = [i % 80 for i in range(100)], [-1, *range(80, 133)], pasted(masks)
    runs = {
        "full masks": lambda: merged_full(full, classes, scores, semantic.labels, stuff),
        "ours": lambda: merge(masks, classes, scores, semantic, stuff),
    }
    ids, segments = runs["full masks"]()
    found = runs["ours"]()
    assert torch.equal(found.ids, ids)
    assert [(s.id, s.category_id, s.isthing, s.area) for s in found.segments] == segments
    return runs


@torch.inference_mode()
def measure(runs: dict[str, Callable[[], Any]], kind: str, size: str | int, rounds: int) -> list[dict[str, Any]]:
    """The first contender is the one that the others are compared with."""
    clocks, first = (time.perf_counter, time.process_time), next(iter(runs))
    best = {name: [float("inf")] * 2 for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            before = [clock() for clock in clocks]
            run()
            spent = [clock() - start for clock, start in zip(clocks, before, strict=True)]
            if turn:  # in the first one kernels are loaded, or compiled
                best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    theirs = best[first]
    return [
        {
            "model": kind, "contender": name, "size": size, "threads": torch.get_num_threads(),
            "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3),
            f"times_faster_than_{first.replace(' ', '_')}": round(theirs[0] / wall, 2),
            "times_faster_in_cpu_seconds": round(theirs[1] / cpu, 2),
            **of_twin(best, wall, cpu),
        }
        for name, (wall, cpu) in best.items()
    ]  # fmt: skip


def of_twin(best: dict[str, list[float]], wall: float, cpu: float) -> dict[str, float]:
    """How much longer something takes than the model with FPN, where there is one."""
    if "fpn" not in best:
        return {}
    return {"times_fpn": round(wall / best["fpn"][0], 3), "times_fpn_in_cpu_seconds": round(cpu / best["fpn"][1], 3)}


@torch.inference_mode()
def measure_pasting(size: tuple[int, int], count: int, rounds: int) -> list[dict[str, Any]]:
    """`count` masks of 28x28 cells into a photo of (height, width); torchvision's are 0..1 and not yet cut at 0.5.

    Equal up to the rule: ours, the official one of detectron2, samples at the middles of pixels; torchvision rounds
    boxes outwards to whole pixels and resizes the mask to them.
    """
    generator = torch.Generator().manual_seed(0)
    cells = torch.nn.functional.interpolate(torch.randn(count, 1, 5, 5, generator=generator) * 4, (28, 28))[:, 0]
    corners, sides = torch.rand(2, count, 2, generator=generator)
    scale = torch.tensor(size[::-1], dtype=torch.float32)
    boxes = torch.cat([corners * scale * 0.7, corners * scale * 0.7 + sides * scale * 0.3 + 1], dim=1)
    masks, soft = SoftMasks(cells, boxes, size), cells.sigmoid()[:, None]
    runs = {
        "torchvision": lambda: paste_masks_in_image(soft, boxes, size),
        "pasted": lambda: pasted(masks),
        "crops": lambda: [masks.crop(m) for m in range(count)],
    }
    best = {name: [float("inf")] * 2 for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            before = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - before[0], time.process_time() - before[1]
            best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    theirs, shared = best["torchvision"], {"model": f"pasting {count} masks", "size": "x".join(map(str, size))}
    return [
        shared | {
            "contender": name, "threads": torch.get_num_threads(),
            "seconds": round(wall, 4), "cpu_seconds": round(cpu, 4),
            "times_faster_than_torchvision": round(theirs[0] / wall, 1),
            "times_faster_in_cpu_seconds": round(theirs[1] / cpu, 1),
        }
        for name, (wall, cpu) in best.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["faster_rcnn", "mask_rcnn"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--paste", action="store_true", help="also 100 masks into a photo of 12 megapixels")
    parser.add_argument("--merge", nargs="*", default=[], metavar="HxW", help="sizes of images that are merged")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = {"device": device_name(torch.device("cpu")), "torch": torch.__version__, **run_facts()}
    rows = []
    for kind in options.models:
        manners, counts = contenders(kind, options.size)
        for manner, runs in manners.items():
            found = measure(runs, kind, options.size, options.rounds)
            rows += [row | counts[row["contender"]] | {"manner": manner} for row in found]
    if options.paste:
        rows += measure_pasting((3000, 4000), 100, options.rounds)
    for size in options.merge:
        rows += measure(mergers(tuple(map(int, size.split("x")))), "merge", size, options.rounds)
    rows = [row | facts for row in rows]
    for row in rows:
        print_row(row)
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
