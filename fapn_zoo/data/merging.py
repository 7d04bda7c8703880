"""Categories of objects that are merged, renamed or left out, as `values` and `ignored_values` of a table say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import load_json


def folder_table(root: Path) -> LabelMap | None:
    """The table of a folder's `classes.json` that merges or leaves out; None where it does not. DataError if bad."""
    file = root / "classes.json"
    try:
        said = load_json(file, strict=True) if file.is_file() else {}
        merges = isinstance(said, dict) and bool(said.get("values") or said.get("ignored_values"))
        return LabelMap.from_json(file) if merges else None
    except ValueError as error:
        raise DataError(str(error)) from None


def merged(
    source: LabelMap, numbers: Sequence[int], table: LabelMap, where: object
) -> tuple[LabelMap, list[int | None]]:
    """The classes that remain, and for every class of `source` its new id, or None where it is left out.

    Args:
        source: the categories as the data has them. numbers: what its files call them, where not by name.
        table: whose `raw` values are names of `source`, or such numbers.

    Raises:
        DataError: beginning with `where`; a category in neither list, or things and stuff in one class.
    """
    ids: list[int | None] = []
    for name, number in zip(source.names, numbers, strict=True):
        try:
            ids.append(table.raw.class_of(name, number))
        except ValueError as error:
            raise DataError(f"{where}: category {error}") from None
    things = table.things
    if not things:
        kinds = [{i in source.things for i, new in enumerate(ids) if new == k} for k in range(table.num_classes)]
        if mixed := [table.names[k] for k, own in enumerate(kinds) if len(own) > 1]:
            raise DataError(f'{where}: class {mixed[0]!r} is of things and of stuff; say "things" in classes.json')
        things = tuple(k for k, own in enumerate(kinds) if True in own)
    own = table.category_ids, table.values, table.ignored_values
    return LabelMap(table.names, table.palette, table.ignore_index, things, *own), ids


def void(ids: np.ndarray, kept: Sequence[bool]) -> np.ndarray:
    """A map of 1 + segment, 0 for none, without the segments that are not kept."""
    places = np.cumsum([0, *kept], dtype=np.int32)
    return np.where([False, *kept], places, 0).astype(np.int32)[ids]
