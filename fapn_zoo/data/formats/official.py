"""Semantic data sets in the folders that their authors publish: which they are, and what their values mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from fapn_zoo.data.formats.mask_classes import check_number, find_classes
from fapn_zoo.data.formats.masks import MaskPairs
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading import read_labels
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.files import load_json
from fapn_zoo.zoo.labels import label_set

LOOKED_AT = 50  # files by which releases and classes are told
VOC = "Pascal VOC"


@cache
def _table() -> tuple[dict[str, Any], ...]:
    text = (files("fapn_zoo") / "data" / "formats" / "official.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def which(root: Path) -> dict[str, Any] | None:
    """The row of `official.json` whose signs are all there; None where there is none."""
    if not root.is_dir():
        return None
    found = (row for row in _table() if all(next(root.glob(sign), None) for sign in row["signs"]))
    return next((row for row in found if row["name"] != VOC or _is_voc(root, row["names"])), None)


def _is_voc(root: Path, names: Sequence[str]) -> bool:
    """Whether the objects are of VOC's classes: many data sets of others have its folders."""
    found: set[str | None] = set()
    for _, file in zip(range(LOOKED_AT), sorted((root / "Annotations").glob("*.xml")), strict=False):
        try:
            found |= {one.findtext("name") for one in ElementTree.parse(file).iterfind("object")}
        except ElementTree.ParseError:
            return False
    return bool(found) and found <= {*names[1:]} and not (root / "labelmap.txt").is_file()


class OfficialMasks(MaskPairs):
    """ADE20K, Cityscapes, COCO-Stuff-10K, Mapillary Vistas and Pascal VOC as their authors publish them.

    A `classes.json` in the folder has the last word on classes. See `MaskPairs`, whose errors these are.
    """

    @classmethod
    def _options(cls, folder: Path, options: dict[str, str]) -> dict[str, str]:
        row = which(folder)
        if row is None:
            known = ", ".join(dict.fromkeys(one["name"] for one in _table()))
            raise DataError(f"{folder} has the official folders of none of {known}")
        return {key: row[key] for key in ("images", "masks", "lists") if key in row} | options

    def _labels(self, num_classes: int | None) -> tuple[LabelMap, list[str]]:
        row = which(self.root)
        if (given := find_classes(self.root, [], self.options.get("classes"), num_classes)) is not None:
            return given, [f"{self.root}: {row['name']}, with classes of your own"]
        lines = [f"{self.root}: {text}" for text in (row["name"], row.get("note")) if text]
        if "config" in row:
            labels = _of_config(self.root / row["config"])
            check_number(num_classes, labels, row["config"])
            return labels, lines
        if "releases" in row:
            release = _release(self.root, [mask for _, _, mask in self.pairs])
            row = row | row["releases"][release]
            lines[0] += f", release {release}"
        facts: dict[str, Any] = {"names": row["names"]} if "names" in row else label_set(row["label_set"])
        count, skipped = len(facts["names"]), {*row.get("skipped", ())}
        plain = (i for i in range(row.get("first", 0), 2 * count + 2) if i not in skipped)
        values = row.get("values") or [value for _, value in zip(range(count), plain, strict=False)]
        own = {key: facts[key] for key in ("palette", "things") if key in facts}
        stored = {"values": tuple((v,) for v in values), "ignored_values": tuple(row["ignored"])}
        labels = LabelMap(tuple(facts["names"]), **own, **stored)
        check_number(num_classes, labels, row["name"])
        return labels, lines


def _of_config(file: Path) -> LabelMap:
    """Mapillary's table: the value is the place in `labels`; those that are not evaluated are ignored."""
    try:
        table = load_json(file)["labels"]
        used = [i for i, one in enumerate(table) if one["evaluate"]]
        names = [table[i]["readable"] for i in used]
        if len({*names}) < len(names):
            names = [table[i]["name"] for i in used]
        palette = tuple(tuple(table[i]["color"]) for i in used)
        things = tuple(k for k, i in enumerate(used) if table[i]["instances"])
        ignored = tuple(i for i in range(len(table)) if i not in used)
        return LabelMap(tuple(names), palette, 255, things, (), tuple((i,) for i in used), ignored)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no table of Mapillary's labels: {error!r}") from None


def _release(root: Path, masks: Sequence[Path]) -> str:
    """The release of COCO-Stuff-10K: 1.0 stores 1 to 172, 1 for unlabelled, and 1.1 stores 0 to 182, 0 for it.

    DataError where the first masks could be of both.
    """
    step = max(len(masks) // LOOKED_AT, 1)
    found = np.unique(np.concatenate([np.unique(read_labels(mask)) for mask in masks[::step]]))
    if found[0] == 0 or found[-1] > 172:
        return "1.1"
    if len(masks[::step]) < LOOKED_AT // 5:
        way = 'write "names" and "values" into classes.json'
        raise DataError(f"{root}: its few masks hold {found[0]} to {found[-1]}, as releases 1.0 and 1.1 may; {way}")
    return "1.0"
