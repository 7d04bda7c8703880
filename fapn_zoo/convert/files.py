"""Official checkpoints on disk -> weights folders that are checked before they appear."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fapn_zoo.convert.names import to_zoo
from fapn_zoo.convert.reading import read_checkpoint
from fapn_zoo.model import ZooModel, build
from fapn_zoo.runtime.files import make_folder, move_files, new_folder
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS, probe
from fapn_zoo.weights import folder as folders
from fapn_zoo.weights.digests import file_digest
from fapn_zoo.zoo.labels import with_labels
from fapn_zoo.zoo.registry import get_spec, list_models
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

logger = logging.getLogger(__name__)


class Conversion(NamedTuple):
    """What became of a file: the model that it is of, and its weights folder."""

    source: Path
    model: str
    folder: Path


def convert(source: str | Path, out: str | Path, model: str | None = None) -> Conversion:
    """Converts an official checkpoint to the weights folder `out`.

    Args:
        source: the file.
        model: name of the model, with or without a tag; None finds that of a released file by its name or md5.

    Raises:
        FileNotFoundError, ValueError: the file cannot be converted, see `convert_file`, or its model is not found.
    """
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the checkpoint file")
    if model is not None:
        spec, tag = get_spec(model)
        weights = spec.weights[tag] if tag else None
    else:
        spec, weights = _by_name(path) or _by_md5(path)
    return _write(path, spec, Path(out), weights)


def convert_file(path: str | Path, spec: ModelSpec, out: str | Path, *, weights: WeightsSpec | None = None) -> Path:
    """Writes the weights folder of an official checkpoint, once it has been read back and compared.

    Memory holds two copies of the weights at most.

    Args:
        path: any container that `read_checkpoint` reads.
        spec: the model. Its official weights give source, licence and reported metrics.
        weights: replaces these, for a file that was checked already; otherwise the md5 in its name is.
        out: the folder; its files of the three names are replaced together.

    Raises:
        FileNotFoundError: no such file. ValueError: an md5 that is not the one in the name, a file that is refused,
            tensors that are not the model's, or that are not finite numbers.
    """
    return _write(Path(path), spec, Path(out), weights, checked=weights is not None).folder


def _official_models() -> list[tuple[ModelSpec, WeightsSpec]]:
    specs = (get_spec(name)[0] for name in list_models())
    return [(spec, weights) for spec in specs for weights in spec.weights.values() if weights.source == "official"]


def _by_name(path: Path) -> tuple[ModelSpec, WeightsSpec] | None:
    return next((found for found in _official_models() if path.name == found[1].location.rpartition("/")[2]), None)


def _by_md5(path: Path) -> tuple[ModelSpec, WeightsSpec]:
    """The model of a released file under another name. ValueError where it is none whose md5 is known."""
    if path.is_file():
        digest = file_digest(path, "md5")
        for found in _official_models():
            if found[1].md5_prefix and digest.startswith(found[1].md5_prefix):
                return found
    raise ValueError(f"{path} is no released file that is known by its name or md5; name the model (--model)")


def _claims(path: Path, weights: WeightsSpec | None, known: Collection[WeightsSpec]) -> tuple[WeightsSpec | None, str]:
    """What may be said of a file that is given as official weights: theirs, if its md5 is the one in their name.

    `known` are all weights of the model: of several, the file's own are found by the md5 under another name too.

    Returns:
        The weights, or None where the file is another one, whose scores and terms nobody knows; and a sentence for the
        card where something is to be said.

    Raises:
        ValueError: it has the name of a released file, but not its md5.
    """
    named = _by_name(path)
    official = named[1] if named else weights
    if official is None:
        return weights, ""
    if official.md5_prefix is None:
        return weights, "The release states no checksum: that this is its file is the word of whoever converted it."
    digest = file_digest(path, "md5")
    if digest.startswith(official.md5_prefix):
        return weights, ""
    own = next((w for w in known if w.md5_prefix and digest.startswith(w.md5_prefix)), None)
    if own is not None and not named:
        return own, ""
    if named:
        raise ValueError(f"{path} has md5 {digest}, but its name promises {official.md5_prefix}...; fetch it again")
    words = "%s has md5 %s, the released file %s...: it is converted without the release's scores and licence"
    logger.warning(words, path, digest, official.md5_prefix)
    return None, f"Converted from a file with md5 {digest}, which has the structure of a release but is not its file."


def _write(path: Path, spec: ModelSpec, out: Path, weights: WeightsSpec | None, *, checked: bool = False) -> Conversion:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {str(path)!r}")
    if weights is None:
        weights = next((w for w in spec.weights.values() if w.source == "official"), None)
    weights, note = (weights, "") if checked else _claims(path, weights, spec.weights.values())
    spec = with_labels(spec)
    digest = file_digest(path)
    folders.check_replaceable(out)
    network = _network(path, spec)
    words = [weights.note[:1].upper() + weights.note[1:] + "."] if weights and weights.note else []
    make_folder(out.parent)
    with new_folder(out) as partial:
        folders.save_model(
            network,
            partial,
            license=weights.license if weights else "unknown",
            metrics=weights.metrics if weights else None,
            text=" ".join([*words, note]).strip(),
            source=", ".join([*([weights.location] if weights else []), f"sha256 {digest}"]),
        )
        _compare(partial / WEIGHTS, network.state_dict())
        del network  # before there is a second one
        again = build(folders.read_spec(partial), empty=True)
        folders.load_weights(again, partial)
        _compare(partial / WEIGHTS, again.state_dict())
        probe.check(again, folders.read_config(partial)["probe"])
        make_folder(out)
        move_files(partial, out, (WEIGHTS, CARD, CONFIG))
    return Conversion(path, spec.name, out)


def _network(path: Path, spec: ModelSpec) -> ZooModel:
    state = read_checkpoint(path)
    try:
        tensors, dropped = to_zoo(state, spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for reason, count in Counter(dropped.values()).items():
        logger.info("%s: %d dropped, %s", path.name, count, reason)
    bad = [key for key, value in tensors.items() if not (value.is_floating_point() and value.isfinite().all())]
    if bad:
        raise ValueError(f"{path} holds values that are no finite floating-point numbers, in {', '.join(bad[:5])}")
    network = build(spec, empty=True)
    folders.assign_tensors(network, tensors, path, share=True)
    return network


def _compare(file: Path, tensors: Mapping[str, Tensor]) -> None:
    stored = folders.read_tensors(file)
    other = stored.keys() ^ tensors.keys()
    other |= {key for key in stored.keys() & tensors.keys() if not torch.equal(stored[key], tensors[key])}
    if other:
        raise ValueError(f"{file} does not hold what was written or read, in {', '.join(sorted(other)[:5])}")
