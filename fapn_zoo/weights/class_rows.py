"""Weights follow their classes by name, where a model is made for other classes than its weights know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fapn_zoo.zoo.labels import with_labels
from fapn_zoo.zoo.spec import ModelSpec

Pairs = list[tuple[int, int]]  # places among the old ones and among the new ones


def known_names(spec: ModelSpec) -> tuple[str, ...]:
    """The names of a model's classes; () where there are none but `class_0`, `class_1`, ..."""
    names = tuple(with_labels(spec).data.labels)
    return () if names == tuple(f"class_{i}" for i in range(len(names))) else names


def same_classes(saved: ModelSpec, spec: ModelSpec, by_name: bool = True) -> bool:
    """Whether weights fit as they are: as many classes and, `by_name`, none that is known by another name or kind."""
    (old, its), (new, mine) = ((known_names(side), _orders(side)["things"]) for side in (saved, spec))
    same = not (by_name and old and new) or (old == new and its == mine)
    return saved.num_classes == spec.num_classes and same


def same_names(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Which old class each new one is: new index -> old index.

    Names are equal as they are or, where that leaves no doubt, but for case and signs: "Traffic light" is
    "traffic_light".
    """
    found = {j: old.index(name) for j, name in enumerate(new) if name in old}
    loose, its = _loose(old, found.values()), _loose(new, found)
    return dict(sorted((found | {j: loose[name] for name, j in its.items() if name in loose}).items()))


def _loose(names: Sequence[str], taken: Iterable[int]) -> dict[str, int]:
    """Words in small letters -> place of the one name that has them, of those that are not taken."""
    words = [" ".join(re.findall(r"[^\W_]+", name.casefold())) for name in names]
    return {word: i for i, word in enumerate(words) if word and words.count(word) == 1 and i not in {*taken}}


def carry(model: Any, tensors: dict[str, Tensor], saved: ModelSpec) -> tuple[str, ...]:
    """Puts the rows of classes that the weights know into tensors of the model's shape; its other classes stay random.

    Args:
        model: a `ZooModel` whose description names its classes.
        tensors: of the weights by name; those that depend on classes are replaced.
        saved: the description of the weights.

    Returns:
        The names of the classes that were found. () where there are none, or the head does not say how classes lie in
        its layers: then nothing is replaced.
    """
    names, rows = known_names(model.spec), model.head.classifier
    found = same_names(known_names(saved), names)
    if not found or not isinstance(rows, Mapping):
        return ()
    old, new = _orders(saved), _orders(model.spec)
    pairs = {
        of: [(old[of].index(found[c]), at) for at, c in enumerate(new[of]) if found.get(c) in old[of]] for of in new
    }
    for key, fresh in model.state_dict().items():
        for layer, how in rows.items():
            if key.startswith(f"head.{layer}.") and key in tensors:
                tensors[key] = _moved(tensors[key], fresh, how, pairs, {of: len(new[of]) for of in new})
    return tuple(names[j] for j in found)


def _orders(spec: ModelSpec) -> dict[str, list[int]]:
    """The class ids of outputs in their order, by what the outputs are of."""
    everything = list(range(spec.num_classes))
    things = sorted(with_labels(spec).data.things) or everything
    return {"classes": everything, "things": things, "stuff": [i for i in everything if i not in things]}


def _moved(tensor: Tensor, fresh: Tensor, how: Any, pairs: dict[str, Pairs], counts: dict[str, int]) -> Tensor:
    """The fresh tensor with the rows and columns of the classes in `pairs`, and all that are of none, of the other."""
    rows = [(i, i) for i in range(len(fresh))]
    if how.of:
        each = (len(fresh) - how.first - how.last) // max(counts[how.of], 1)
        rows = [(i, i) for i in (*range(how.first), *range(-how.last, 0))]
        rows += [(how.first + each * a + i, how.first + each * b + i) for a, b in pairs[how.of] for i in range(each)]
    result = fresh.detach().to("cpu", tensor.dtype, copy=True)
    frm, to = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).unbind(1)
    if how.inputs and tensor.ndim > 1:
        others = fresh.shape[1] - counts["classes"]
        columns = torch.tensor(
            [(i, i) for i in range(others)] + [(others + a, others + b) for a, b in pairs["classes"]]
        )
        result[to[:, None], columns[:, 1]] = tensor[frm[:, None], columns[:, 0]]
    else:
        result[to] = tensor[frm]
    return result
