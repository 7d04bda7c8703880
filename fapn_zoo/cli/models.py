"""The verbs `list`, `info`, `convert` and `push`: models, and their weights on the way in and out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from importlib.metadata import PackageNotFoundError, version

from fapn_zoo.zoo.parts import BACKBONES, HEADS, NECKS
from fapn_zoo.zoo.registry import get_spec, list_models, resolve
from fapn_zoo.zoo.spec import SCALES

PACKAGES = "fapn-zoo torch torchvision timm safetensors huggingface-hub accelerate numba triton".split()
# Arguments that `fapn_zoo.export.push.push` takes under the same names.
PUSH = ("license", "example", "revision", "private", "message", "dry_run")


def run_list(args: argparse.Namespace) -> None:
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


def run_info(args: argparse.Namespace) -> None:
    if args.model is not None:
        print(describe_spec(args.model) if args.spec else describe_model(args.model))
    elif args.spec:
        raise ValueError("--spec describes a model; name one")
    else:
        print(describe_installation())


def describe_installation() -> str:
    """Versions, devices, and the backend of deformable convolution."""
    import torch

    from fapn_zoo.modules.deform_conv.conv import available_backends

    lines = [f"{'python':<16} {platform.python_version()}"]
    lines += [f"{name:<16} {_version(name)}" for name in PACKAGES]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines += [f"{'devices':<16} {', '.join(['cpu', *gpus])}"]
    devices = ["cpu", "cuda"] if gpus else ["cpu"]
    used = ", ".join(f"{_deform_conv(device)} on {device}" for device in devices)
    lines += [f"{'deform conv':<16} {used} (available: {', '.join(available_backends())})"]
    return "\n".join(lines)


def _deform_conv(device: str) -> str:
    from fapn_zoo.modules.deform_conv.conv import active_backend

    try:
        return active_backend(device)
    except ValueError as error:  # FAPN_ZOO_DEFORM_CONV names a backend for other devices, or none at all
        return f"none ({error})"


def describe_model(name: str) -> str:
    """Structure, size, preprocessing and weights of one model; builds it on the meta device to count."""
    import torch

    from fapn_zoo import create_model

    spec, _ = get_spec(name)
    facts = {"model": spec.name, "head": spec.head, "neck": spec.neck, "backbone": spec.backbone or "any (backbone=)"}
    if spec.backbone is not None:
        with torch.device("meta"):
            model = create_model(name, num_classes=spec.num_classes or 1)
        spec = model.spec if spec.num_classes else spec
        facts["parameters"] = f"{sum(p.numel() for p in model.parameters()):,}"
    facts["classes"] = str(spec.num_classes or "any (num_classes=)")
    facts["labels"] = ", ".join(spec.data.labels) or "-"
    facts["arguments"] = ", ".join(f"{key}={value!r}" for key, value in spec.args.items()) or "-"
    size, longest = spec.data.test_size, spec.data.test_max_size
    facts["test size"] = "that of the image" if size is None else f"short side {size}"
    facts["test size"] += f", long side at most {longest}" if longest else ""
    for tag, weights in spec.weights.items():
        metrics = ", ".join(f"{key} {value:.2f}" for key, value in weights.metrics.items())
        told = [weights.origin, metrics, weights.note, weights.page]
        facts[f"weights .{tag}"] = "; ".join(filter(None, told))
    if not spec.weights:
        facts["weights"] = "none released yet"
    return "\n".join(f"{key:<16} {value}" for key, value in facts.items())


def describe_spec(name: str) -> str:
    """All that a name stands for, as JSON, an entry a line: the model's description, and the rows that it names."""
    spec, _ = resolve(name)
    scales = SCALES.get((spec.label_set, spec.data.test_size))
    facts = spec.to_config() | {
        "weights": {tag: dataclasses.asdict(weights) for tag, weights in spec.weights.items()},
        "parts": {
            "head": HEADS[spec.head]._asdict(),
            "neck": NECKS[spec.neck]._asdict(),
            "backbone": BACKBONES.get(spec.backbone, spec.backbone),
        },
        "official_scales": scales and {"short_sides": scales[0], "max_size": scales[1]},
    }
    lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run_convert(args: argparse.Namespace) -> None:
    from fapn_zoo.convert import convert

    done = convert(args.source, args.out, args.model)
    print(f"{done.folder}: {done.model} from {done.source}")


def run_push(args: argparse.Namespace) -> None:
    from fapn_zoo.export.push import push

    options = {name: getattr(args, name) for name in PUSH}
    print(push(args.folder, args.repository, **options))
