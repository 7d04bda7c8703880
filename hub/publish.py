"""Publishes the zoo: every model with weights is checked, its card rendered from facts, and (on demand) uploaded.

    python -m hub.publish --all                                 # a dry run: cards into hub/cards/, no network
    python -m hub.publish --all --upload --owner OWNER

Models whose weights are ours (in the package) become whole Hub repositories: weights, description, card, and a
generated scene as example. Of official releases nothing is ever uploaded: their cards say where the authors' files are,
under which terms, and what the authors report. Measured values come from hub/results/*.csv, never from a keyboard.
Nothing is uploaded before every card asked for has been rendered and checked.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import write_text
from fapn_zoo.weights.card import METRICS, check_card, render_card
from fapn_zoo.zoo.labels import label_set
from fapn_zoo.zoo.registry import get_spec, list_models, resolve
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

HUB = Path(__file__).resolve().parent
CARDS, RESULTS = HUB / "cards", HUB / "results"
OWNER = "OWNER"  # what cards of a dry run say where nobody was named
SCENE = 7  # seed of the example; the evaluation's scenes and those of training are others


@dataclasses.dataclass(frozen=True)
class Ready:
    """A model that was checked: its card, empty where the Hub has it already, and what may be uploaded, if anything."""

    name: str
    card: str
    status: str
    package: Any = None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error (one line; nothing was uploaded unless it says so), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m hub.publish", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models, with or without .tag")
    parser.add_argument("--all", action="store_true", help="every model with weights")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="render and check only (default)")
    action.add_argument("--upload", action="store_true", help="upload what is ours to give")
    parser.add_argument("--owner", default=OWNER, help="user or organisation on the Hub")
    parser.add_argument("--out", type=Path, default=CARDS, help="folder for the cards (hub/cards)")
    args = parser.parse_args(argv)
    if bool(args.names) == args.all:
        parser.error("give names of models, or --all")
    if args.upload and args.owner == OWNER:
        parser.error("--upload needs --owner")
    logging.getLogger("fapn_zoo").setLevel(logging.WARNING)
    try:
        publish(args.names or list_models(pretrained=True), args.owner, args.out, upload=args.upload)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def publish(names: Sequence[str], owner: str, out: Path, *, upload: bool = False) -> None:
    """Renders and checks all, writes the cards, then uploads where asked; prints a line per model."""
    ready = [prepare_model(name, owner) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    width = max(len(model.name) for model in ready)
    for model in ready:
        if model.card:
            write_text(out / f"{model.name}.md", model.card)
        print(f"{model.name:<{width}}  {model.status}")
    if not upload:
        return
    from fapn_zoo.export import push

    for model in ready:
        if model.package is not None:
            print(f"{model.name:<{width}}  uploaded: {push.upload(model.package)}")


def prepare_model(name: str, owner: str) -> Ready:
    """The checked card of a model, and what may be uploaded. Raises ValueError naming the model."""
    spec, tag = get_spec(name)
    weights, tag = resolve(name, weights=True)[1], tag or next(iter(spec.weights))
    short = spec.name if len(spec.weights) == 1 else f"{spec.name}.{tag}"
    rows = result_rows(spec, tag, weights)
    try:
        if weights.source == "embedded":
            return _embedded(weights, rows, short, f"{owner}/{short}")
        if weights.source == "official":
            return _official(spec, weights, rows, short)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error
    return Ready(short, "", f"on the Hub already: {weights.location}")


def result_rows(spec: ModelSpec, tag: str, weights: WeightsSpec) -> list[dict[str, str]]:
    """The lines of hub/results/*.csv that are scores of this model with these weights; the last of each split wins.

    In full precision, as the scores that a weights folder states.
    """
    called = {f"{spec.name}.{tag}", weights.location, f"hf-hub:{weights.location}"}
    called |= {spec.name} if tag == next(iter(spec.weights)) else set()
    called |= {weights.source} if weights.source == "embedded" else set()
    found = {}
    for row in _all_rows():
        if row["model"] == spec.name and row["weights"] in called and row.get("amp", "no") == "no":
            found[row["data"], row["split"]] = row
    return list(found.values())


def _all_rows() -> Iterator[dict[str, str]]:
    for path in sorted(RESULTS.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            columns = set(table.fieldnames or ())
            if {"model", "weights", "data", "split"} <= columns and columns & set(METRICS):  # others time things
                yield from table


def _embedded(weights: WeightsSpec, rows: Sequence[Mapping[str, str]], name: str, repository: str) -> Ready:
    """A whole repository: reloaded, compared with its stored outputs and the registry, measured, with an example."""
    import fapn_zoo
    from fapn_zoo.data.scenes import generate_scene
    from fapn_zoo.export import push
    from fapn_zoo.weights.folder import read_config

    folder = Path(fapn_zoo.__file__).parent / "weights" / "embedded" / weights.location
    config = read_config(folder)
    if config.get("license") != weights.license:
        raise ValueError(f"{folder} states the licence {config.get('license')!r}, the registry {weights.license!r}")
    if not config.get("probe"):
        raise ValueError(f"{folder} holds no stored outputs; save it again")
    if not rows:
        raise ValueError(f"no row in {RESULTS} has a score of these weights; run fapn-zoo eval with --csv")
    package = push.prepare(folder, repository, example=generate_scene(SCENE, (360, 480)).image, rows=rows)
    if package.sha256 != weights.sha256:
        raise ValueError(f"{folder} has sha256 {package.sha256}, the registry {weights.sha256}")
    return Ready(name, package.card, f"whole: {weights.license}, {_scores(rows)}", package)


def _official(spec: ModelSpec, weights: WeightsSpec, rows: Sequence[Mapping[str, str]], name: str) -> Ready:
    """A card alone. It is a pointer: the weights stay where their authors put them."""
    if not weights.license or weights.license == "unknown":
        raise ValueError("the registry names no licence")
    if not weights.page:
        raise ValueError("the registry names no web page of the release")
    data = spec.data
    if spec.label_set and not data.labels:
        data = dataclasses.replace(data, labels=label_set(spec.label_set)["names"])
    config = {
        "model": dataclasses.replace(spec, data=data).to_config(),
        "license": weights.license,
        "metrics": dict(weights.metrics),
        "source": weights.location,
    }
    card = render_card(config, rows=rows, pointer=True)
    check_card(card)
    measured = f", {_scores(rows)}" if rows else ""
    return Ready(name, card, f"card only, the weights stay with their authors: {weights.license}{measured}")


def _scores(rows: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{row['data']} {row['split']} mIoU {row['miou']}" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
