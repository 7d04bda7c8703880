"""The verbs `list` and `info`."""

from __future__ import annotations

import argparse

from fapn_zoo.cli.common import Verbs, add_verb
from fapn_zoo.zoo.registry import get_spec, list_models


def add(verbs: Verbs) -> None:
    verb = add_verb(verbs, "list", run_list, "names of the models, and where their weights come from")
    verb.add_argument("pattern", nargs="?", default="*", help="wildcards, quoted")
    verb.add_argument("--pretrained", action="store_true", help="only those with weights")
    verb.add_argument("--task", help="only those of this task: semantic, panoptic or instance")

    text = "one model, or (without a name) versions and the deformable convolution in use"
    verb = add_verb(verbs, "info", run_info, text)
    verb.add_argument("model", nargs="?")
    verb.add_argument("--spec", action="store_true", help="everything that the name stands for, as JSON")


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
    from fapn_zoo.cli.info import describe_installation, describe_model, describe_spec

    if args.model is not None:
        print(describe_spec(args.model) if args.spec else describe_model(args.model))
    elif args.spec:
        raise ValueError("--spec describes a model; name one")
    else:
        print(describe_installation())
