"""Looking for NaN and infinity, which an argmax turns into class 0 without a word."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fapn_zoo.runtime.tables import some


class NotFinite(ValueError):
    """Numbers that are NaN or infinite where none may be; the message is for users."""


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a head's output, of an optimizer's state or of anything that holds some, by field, key or place.

    Looks into dictionaries, sequences, (named) tuples, dataclasses and plain objects; a tensor alone has `name`.
    """
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)) and not callable(value):
        parts = vars(value).items()
    else:
        return
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def faults(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, list[str]]:
    """ "NaN" and "inf" -> the names of the tensors that hold such numbers; nothing where all are finite."""
    found: dict[str, list[str]] = {}
    for name, tensor in tensors:
        # One pass without a map of its own: a sum is not finite where a summand is not. Half precision may overflow.
        if not (tensor.is_floating_point() or tensor.is_complex()) or _is_finite(tensor.detach().sum()):
            continue
        for kind, test in (("NaN", torch.isnan), ("inf", torch.isinf)):
            if test(tensor).any():
                found.setdefault(kind, []).append(name)
    return found


# What models whose weights were finite held then: the identity of every tensor, and how often it was written to.
_FINITE: WeakKeyDictionary[nn.Module, list[tuple[int, int]]] = WeakKeyDictionary()


def faults_of_model(model: nn.Module) -> dict[str, list[str]]:
    """`faults` of parameters and stored buffers. Weights that were finite are only looked at again once written to."""
    try:
        parts = (part for module in model.modules() for part in (module._parameters, module._buffers))
        state = [(id(t), t._version) for part in parts for t in part.values() if t is not None]
    except RuntimeError:  # tensors made in inference mode count no writes
        return faults(model.state_dict().items())
    if _FINITE.get(model) == state:
        return {}
    found = faults(model.state_dict().items())
    if not found:
        _FINITE[model] = state
    return found


def told(found: Mapping[str, list[str]]) -> str:
    """`faults` in words: "NaN in head.a, head.b and 3 more; inf in neck.c"."""
    return "; ".join(f"{kind} in {some(names)}" for kind, names in found.items())


def check_finite(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raises NotFinite, "`what` hold NaN in ...", where a number is NaN or infinite; names up to five tensors each."""
    if found := faults(tensors):
        raise NotFinite(f"{what} hold {told(found)}")


def _is_finite(total: Tensor) -> bool:
    return math.isfinite(abs(total.item()))  # abs: complex numbers have two parts
