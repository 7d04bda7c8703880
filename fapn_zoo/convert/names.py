"""State dicts: official names -> this package's.

Every official tensor is used once or dropped for a stated reason, and every tensor of the model must be there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from fapn_zoo.convert.eomt import authors_state
from fapn_zoo.convert.key_maps import DROPPED, FIRST_VERSION, official_names
from fapn_zoo.model import build
from fapn_zoo.runtime.tables import some
from fapn_zoo.zoo.labels import with_labels
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

logger = logging.getLogger(__name__)

HEAD, PREDICTOR, DECODER = "sem_seg_head.", "sem_seg_head.predictor", "sem_seg_head.pixel_decoder."
State = Mapping[str, Tensor]
Shapes = Mapping[str, torch.Size]


def to_zoo(state: State, spec: ModelSpec) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an official checkpoint under this package's names, none of them copied.

    Args:
        state: names of either version of MaskFormer's heads, or detectron2's, PointRend's of either version too, or
            EoMT's, by its authors or transformers.
        spec: a complete model description.

    Returns:
        One tensor for every name of the model's state dict; and the official keys that were dropped, with reasons.

    Raises:
        ValueError: keys that are unknown or missing, or shapes that are not the model's, naming up to five of each;
            second names of one tensor with other values; a model that no release has.
    """
    shapes, maps = model_shapes(spec), official_names(spec)
    if spec.head == "eomt":
        state = authors_state(state, spec)
    written = second_version(state)  # second version's name -> the name in the file
    official = maps.keys.translate(shapes)
    found = {name: written[key] for name, key in official.items() if key in written}
    dropped, unknown = {}, []
    for key, alias in maps.aliases.translate(official.values()).items():
        if alias in written:
            if key in written and not torch.equal(state[written[alias]], state[written[key]]):
                both = f"{written[alias]!r} and {written[key]!r}"
                raise ValueError(f"{both} are one tensor in {spec.name!r}, but their values differ")
            dropped[written[alias]] = "a second name of another tensor"
    used = dropped.keys() | found.values()
    for key, name in written.items():
        if name not in used:
            reason = next((reason for pattern, reason in DROPPED.items() if fnmatchcase(key, pattern)), None)
            if reason is None:
                unknown.append(name)
            else:
                dropped[name] = reason
    tensors = {name: state[key] for name, key in found.items()}
    missing = [official.get(name, name) for name in shapes if name not in found]
    report(spec, unknown, missing, tensors, shapes, found.get)
    _compare_preprocessing(state, spec.data)
    return tensors, dropped


def model_shapes(spec: ModelSpec) -> dict[str, torch.Size]:
    """Name -> shape of a model's state dict, without its memory."""
    with torch.device("meta"):
        model = build(with_labels(spec), empty=True)  # which classes are things decides about shapes
        return {key: tensor.shape for key, tensor in model.state_dict().items()}


def second_version(keys: Iterable[str]) -> dict[str, str]:
    """Names of the second version of MaskFormer's and PointRend's heads -> the names given, which may be of the first.

    MaskFormer's first version kept the pixel decoder directly in the head, PointRend's its two heads directly among the
    heads of regions (FACTS section 1). The names tell which it is, since metadata may be lost. Names of other models
    are their own.

    Raises:
        ValueError: names of both versions for one tensor.
    """
    keys = list(keys)
    old = any(key.startswith(f"{HEAD}adapter_") or key.startswith(f"{HEAD}mask_features.") for key in keys)
    names: dict[str, str] = {}
    for key in keys:
        moved = old and key.startswith(HEAD) and not key.startswith((PREDICTOR, DECODER))
        name = DECODER + key.removeprefix(HEAD) if moved else key
        begin = next((begin for begin in FIRST_VERSION if key.startswith(begin)), "")
        name = FIRST_VERSION[begin] + key.removeprefix(begin) if begin else name
        if name in names:
            raise ValueError(f"{names[name]!r} and {key!r} are names of one tensor in two versions of the release")
        names[name] = key
    return names


def report(
    spec: ModelSpec, unknown: list[str], missing: list[str], state: State, shapes: Shapes, called: Callable[[str], str]
) -> None:
    """Raises ValueError where names are unknown or missing, or tensors, `called` so, have not the model's shapes."""
    other = [
        f"{called(key)} {tuple(tensor.shape)} instead of {tuple(shapes[key])}"
        for key, tensor in state.items()
        if key in shapes and tensor.shape != shapes[key]
    ]
    problems = []
    for what, keys in (("unknown", unknown), ("missing", missing), ("of another shape", other)):
        problems += [f"{len(keys)} {what}: {some(keys)}"] if keys else []
    if problems:
        raise ValueError(f"the tensors are not those of {spec.name!r}: {'; '.join(problems)}")


def _compare_preprocessing(state: State, data: DataSpec) -> None:
    for key, wanted in (("pixel_mean", data.mean), ("pixel_std", data.std)):
        if key in state:
            found = [round(value, 3) for value in state[key].flatten().tolist()]
            if found != [round(value, 3) for value in wanted]:
                logger.warning("%s of the checkpoint is %s, but the model is made for %s", key, found, list(wanted))
