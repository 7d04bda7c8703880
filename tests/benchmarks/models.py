"""Whole models side by side, from the normalised input to the map of classes: ours and those of other libraries.

    python tests/benchmarks/models.py --csv hub/results/models_speed.csv

Needs the extra `bench`; a library that is missing is left out. Models of one group have the same backbone, size of
input and number of classes, and take turns within each round, every one in three manners; medians over rounds are
compared within a manner. On a GPU times are those between two events around the calls.

    defaults    ours as `fapn_zoo.predict` runs it; the others as their documentation does: float32, no gradients
    fp32        float32, NCHW, no gradients, for all
    bf16        autocast to bfloat16, channels-last, for all

Ours are padded as `predict` pads them. Post-processing is part of it: `postprocess.decode`, `argmax` after smp's
enlarged logits, and the image processor's `post_process_semantic_segmentation`. Weights are random; offsets are drawn
as wide as trained ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from table import print_row, run_facts, write_csv
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.benchmark.inference import draw_offsets
from fapn_zoo.benchmark.run import flop_counter
from fapn_zoo.modules.heads.outputs import Output
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.predict.inputs import padded_size
from fapn_zoo.runtime.device import autocast, device_name, find_device, resolve_amp

MANNERS = ("defaults", "fp32", "bf16")
# Group: input size (H, W), classes, models, and by which of them the others' times are divided. Others' models have the
# name of their library before a colon, then the class.
GROUPS = {
    "resnet50": ((512, 1024), 150, ("perpixel_fapn_resnet50", "perpixel_fpn_resnet50"), ("perpixel_fpn_resnet50",)),
    "resnet18": (
        (512, 1024), 150,
        ("perpixel_fapn_resnet18", "perpixel_fapn_resnet18_cityscapes", "smp:FPN", "smp:UPerNet"),
        ("smp:FPN", "smp:UPerNet"),
    ),
    "maskformer": (
        (512, 512), 150,
        ("maskformer_fapn_resnet50", "maskformer_fpn_resnet50", "transformers:MaskFormer"),
        ("maskformer_fpn_resnet50", "transformers:MaskFormer"),
    ),
    "slim": (
        (360, 480), 11, ("perpixel_fapn_resnet18_slim_camvid", "perpixel_fpn_resnet18_slim_camvid"),
        ("perpixel_fpn_resnet18_slim_camvid",),
    ),
}  # fmt: skip
# A model, the function that turns its output into a map of classes, and the size (H, W) of its padded input.
Built = tuple[nn.Module, Callable[[Any], Any], tuple[int, int]]
LIBRARIES = {"smp": "segmentation_models_pytorch", "transformers": "transformers"}


def build_ours(name: str, group: str, size: tuple[int, int], classes: int) -> Built:
    model = fapn_zoo.create_model(name, num_classes=classes)
    draw_offsets(model)

    def finish(output: Output) -> Tensor:
        return decode(output, "semantic", Frame(size, size), model.data, shares=False).labels

    return model, finish, padded_size(model.data, size)


def build_smp(name: str, group: str, size: tuple[int, int], classes: int) -> Built:
    import segmentation_models_pytorch

    # "tu-": timm's encoder, as ours.
    model = getattr(segmentation_models_pytorch, name)(f"tu-{group}", encoder_weights=None, classes=classes)
    return model, lambda output: output.argmax(1), size


def build_transformers(name: str, group: str, size: tuple[int, int], classes: int) -> Built:
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
        ResNetConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck", out_features=stages)
    config = MaskFormerConfig(backbone_config=backbone, decoder_config=DetrConfig(num_queries=100))
    config.num_labels = classes
    processor = MaskFormerImageProcessor()
    return (
        MaskFormerForInstanceSegmentation(config),
        lambda output: processor.post_process_semantic_segmentation(output, target_sizes=[size]),
        size,
    )


def build(name: str, *arguments: Any) -> Built:
    """A model by its name in `GROUPS`."""
    library, _, rest = name.rpartition(":")
    builders = {"": build_ours, "smp": build_smp, "transformers": build_transformers}
    return builders[library](rest, *arguments)


def is_here(name: str) -> bool:
    library = LIBRARIES.get(name.rpartition(":")[0])
    if library is None or importlib.util.find_spec(library):
        return True
    print(f"{name} is left out: {library} is not installed", flush=True)
    return False


def make_call(
    model: nn.Module, finish: Callable[[Any], Any], manner: str, ours: bool, size: tuple[int, int], device: torch.device
) -> Callable[[], str]:
    """Return a function that does one inference and returns its dtype's name."""
    model = model.to(device).eval()
    amp = {"fp32": "no", "bf16": "bf16"}.get(manner) or (resolve_amp("auto", device) if ours else "no")
    last = manner == "bf16" or (manner == "defaults" and ours and device.type == "cpu")
    # As in `predict`, weights keep their layout: operators pack them for themselves.
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device).contiguous(memory_format=layout)

    def call() -> str:
        with torch.inference_mode() if manner == "defaults" and ours else torch.no_grad():
            with autocast(device, amp):
                output = model(x)
            finish(output)
        return "fp32" if amp == "no" else amp

    return call


def count_macs(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds of a forward pass, in 10**9."""
    with torch.no_grad(), flop_counter() as counter:
        model.eval().requires_grad_(False)(torch.zeros(1, 3, *size))
    return round(counter.get_total_flops() / 2e9, 1)


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def measure(group: str, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each model and manner of a group, all of them interleaved."""
    size, classes, names, references = GROUPS[group]
    names = list(filter(is_here, names))
    references = [name for name in references if name in names]
    calls, macs = {}, {}
    for name in names:
        model, finish, padded = build(name, group, size, classes)
        macs[name] = count_macs(model, padded)
        for manner in MANNERS:
            calls[name, manner] = make_call(model, finish, manner, ":" not in name, padded, device)
    for call in calls.values():  # to warm up
        call()
    dtypes = {key: call() for key, call in calls.items()}
    times = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(milliseconds(call, device))
    middle = {key: statistics.median(values) for key, values in times.items()}
    for (name, manner), values in times.items():
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        row = {"group": group, "size": "x".join(map(str, size)), "classes": classes, "model": name}
        row |= {"gmacs": macs[name], "manner": manner, "dtype": dtypes[name, manner]}
        row |= {"ms": round(middle[name, manner], 1), "p10_ms": round(deciles[0], 1), "p90_ms": round(deciles[-1], 1)}
        for other in references:
            row[f"times {other}"] = round(middle[name, manner] / middle[other, manner], 2)
        yield row


def circumstances(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    packages = ["torch", "torchvision", "timm", *filter(importlib.util.find_spec, LIBRARIES.values())]
    return {
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "device": device_name(device),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        **run_facts(options.commit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="also write the rows to this file")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", help="cpu, cuda; default: a GPU if there is one")
    parser.add_argument("--commit", help="of this code, where there is no git to ask")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more")
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    facts, rows = circumstances(device, options), []
    for group in options.groups:
        for row in measure(group, device, options.rounds):
            print_row(row)
            rows.append(row)
    if options.csv:
        write_csv(options.csv, rows, facts)


if __name__ == "__main__":
    main()
