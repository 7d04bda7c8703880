"""Whether model and data speak of the same classes, and how to score them where they do not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading import check_ids
from fapn_zoo.runtime.files import load_json
from fapn_zoo.runtime.tables import some
from fapn_zoo.zoo.registry import nearest
from fapn_zoo.zoo.spec import FROM_DATA

SHOWN = 30  # classes of a suggested map that fit into one line of an error


@dataclass(frozen=True)
class Classes:
    """How the model's answers and the data's labels become ids that can be compared.

    Attributes:
        names: of the data set.
        columns: number of ids; with a class map one more than names, for answers that are no class of the data.
        ignore_index: the id that is not scored.
        answers: id of the data, or `len(names)`, per class of the model; None where they are the same.
        truth: the same per value of the data's labels.
        mapping: the class map by name, for the report; None without one.
        unscored: names that no class of the model is mapped to: their pixels are ignored.
    """

    names: tuple[str, ...]
    columns: int
    ignore_index: int
    answers: np.ndarray | None = None
    truth: np.ndarray | None = None
    mapping: Mapping[str, str | None] | None = None
    unscored: tuple[str, ...] = ()

    def of_answer(self, found: Tensor) -> Tensor:
        """Class ids of the model -> ids to compare."""
        return found if self.answers is None else torch.from_numpy(self.answers).to(found.device)[found.long()]

    def of_truth(self, labels: np.ndarray, labels_of: Any) -> np.ndarray:
        """Label values -> ids to compare. ValueError for values that are neither a class nor ignored."""
        if self.truth is None:
            return labels
        check_ids(labels, labels_of)
        return self.truth[labels]


def full_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names, or class_0, class_1, ... for a model that has none."""
    return tuple(names) or tuple(f"class_{i}" for i in range(num_classes))


def model_labels(model: nn.Module) -> LabelMap | None:
    """The classes of a model, for data that names none; None where they are no table of a data set (a name twice)."""
    data = model.data
    try:
        names, own = full_names(data.labels, model.num_classes), {key: getattr(data, key) for key in FROM_DATA}
        return LabelMap(names, data.palette, data.ignore_index, data.things, **own)
    except ValueError:
        return None


def match_classes(model: nn.Module, dataset: Any, class_map: Any = None) -> Classes:
    """The classes that are scored.

    Args:
        class_map: None where model and data have the same table. A mapping, or a JSON file with one, from every class
            of the model (by name or id) to a class of the data (by name or id), or to None for answers that count as
            wrong wherever they are given; several may go to one. `"names"` pairs equal names, whatever their case
            and order. Classes of the data that nothing is mapped to are not scored.

    Raises:
        ValueError: the tables differ and there is no map (the map that would fix it is named), or the map names
            classes that are not there or leaves some of the model's out.
    """
    labels = dataset.labels
    if class_map is None:
        check_classes(model, dataset)
        return Classes(labels.names, labels.num_classes, labels.ignore_index)
    names = full_names(model.data.labels, model.num_classes)
    mapping = _resolved(class_map, names, labels.names, dataset.name)
    other = labels.num_classes
    ids = {name: i if i != labels.ignore_index else other for i, name in enumerate(labels.names)}
    dtype = np.uint8 if other < 256 else np.int64
    answers = np.array([other if mapping[n] is None else ids[mapping[n]] for n in names], dtype)
    truth = np.full(max(other, labels.ignore_index + 1), other, dtype)
    scored = sorted(set(answers.tolist()) - {other})
    truth[scored] = scored
    unscored = tuple(n for i, n in enumerate(labels.names) if i not in scored)
    return Classes(labels.names, other + 1, other, answers, truth, mapping, unscored)


def check_classes(model: nn.Module, dataset: Any) -> None:
    """ValueError naming the differences when model and data do not speak of the same classes in the same order."""
    ours, theirs = full_names(model.data.labels, model.num_classes), dataset.labels.names
    found = class_difference("the model", ours, dataset.name, theirs, bool(model.data.labels))
    if found:
        raise ValueError(f"{found}; {_hint(ours, theirs)}")


def class_difference(one: str, ours: Sequence[str], other: str, theirs: Sequence[str], named: bool = True) -> str:
    """Words for how two lists of class names differ; "" where they do not.

    Args:
        one, other: what has these classes.
        named: False where one of the two has no names of its own: that as many classes are the same is taken on trust.
    """
    if len(ours) != len(theirs):
        only = [some(n for n in mine if n not in yours) or "-" for mine, yours in ((ours, theirs), (theirs, ours))]
        counts = f"{one} has {len(ours)} classes, {other} has {len(theirs)}"
        return f"{counts}; only in {one}: {only[0]}; only in {other}: {only[1]}"
    pairs = enumerate(zip(ours, theirs, strict=True)) if named else ()
    return some(f"class {i} is {a!r} for {one} and {b!r} for {other}" for i, (a, b) in pairs if a != b)


def _hint(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Which class map would help."""
    pairs = _by_name(ours, theirs)
    if None not in pairs.values():
        return "to evaluate all the same, pair them by name with --map names"
    shown = json.dumps(dict(list(pairs.items())[:SHOWN]), ensure_ascii=False)
    more = f" and so on for {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    null = "where null (always wrong) may be replaced by a class of the data"
    return f"to evaluate all the same, write --map FILE.json with {shown}{more}, {null}"


def _by_name(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str | None]:
    """Class of the model -> class of the data with the same letters and digits, or None."""
    plain = {re.sub(r"[\W_]+", "", name).casefold(): name for name in theirs}
    return {name: plain.get(re.sub(r"[\W_]+", "", name).casefold()) for name in ours}


def _resolved(class_map: Any, ours: Sequence[str], theirs: Sequence[str], data: str) -> dict[str, str | None]:
    if class_map == "names":
        pairs = _by_name(ours, theirs)
        if not any(pairs.values()):
            shown = f"{', '.join(ours)} / {', '.join(theirs)}"
            raise ValueError(f"no class of {data} has the name of one of the model: {shown}")
        return pairs
    where = "class_map"
    if isinstance(class_map, (str, os.PathLike)):
        where, path = str(class_map), Path(class_map)
        if not path.is_file():
            raise FileNotFoundError(f"no class map {path}; write a JSON file, or names to pair equal names")
        class_map = load_json(path, strict=True)
    if not isinstance(class_map, Mapping):
        raise ValueError(f"{where}: expected an object from classes of the model to classes of the data")
    found = {}
    for key, value in class_map.items():
        name = _one_of(key, ours, f"{where}: the model has no class")
        found[name] = None if value is None else _one_of(value, theirs, f"{where}: {data} has no class")
    missing = [name for name in ours if name not in found]
    if missing:
        raise ValueError(f"{where} leaves out {', '.join(missing)}; map them to null to count them as wrong")
    return found


def _one_of(key: Any, names: Sequence[str], complaint: str) -> str:
    """The class meant by a name, an id, or an id as text."""
    if key in names:
        return key
    if isinstance(key, (int, str)) and str(key).isdecimal() and int(key) < len(names):
        return names[int(key)]
    raise ValueError(f"{complaint} {key!r}{nearest(str(key), names)}")
