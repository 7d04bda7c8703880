"""Data sets of the Hugging Face Hub, or in its formats on this machine: `hf:OWNER/NAME[@REVISION][:CONFIG]`, `hf:PATH`.

What the columns hold says what the samples are: `segments_info` panoptic segments, `objects` boxes or masks, an RGB
`annotation` with `semantic_class_to_id` instances, a mask of one channel classes.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.coco_annotations import BAD_ENTRY, Fault, Picture, Refused, annotation
from fapn_zoo.data.formats.hub_rows import Rows, load_rows, names_of, repository_file, repository_path, rules, splits
from fapn_zoo.data.formats.mask_classes import wanted
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.mask_folder import proposals
from fapn_zoo.data.merging import void
from fapn_zoo.data.opening import opened
from fapn_zoo.data.reading import check_ids, check_sizes, read_class_ids, read_stored
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import LABELS, MASKS, SEGMENTS, DataError, Objects, Sample
from fapn_zoo.runtime.tables import some

LOOKED_AT = 200  # masks, where nobody says which classes there are
CATEGORIES = ("category", "categories", "category_id", "label", "labels")


class HubDataset:
    """The data set of a name, by what its columns hold: one of the classes below."""

    def __new__(cls, name: str, split: str, num_classes: int | None = None, reading: Reading | None = None) -> Any:
        """Errors are those of `load_rows` and of the kind."""
        rows = load_rows(name, split)
        kind = HubMaps
        if "objects" in rows.columns and rows.name.streams:
            raise DataError(f"{rows.title}: objects are looked through before a training; leave out streaming")
        if "objects" in rows.columns:
            kind = HubObjects
        elif "segments_info" in rows.columns:
            kind = HubSegments
        elif "semantic_class_to_id" in rows.columns:
            kind = HubInstances
        return kind(rows, split, num_classes, reading)

    splits = staticmethod(splits)


class HubMaps:
    """Pictures with a mask of class ids each.

    Attributes:
        split: of the name, with the number of its rows and a digest of them, by which a run that goes on knows them.
        facts: "revision" and "license", where they are known. unused: what was chosen, told when it is opened.
    """

    holds = LABELS

    def __init__(self, rows: Rows, split: str, num_classes: int | None, reading: Reading | None) -> None:
        self.rows, self.reading, self.facts = rows, rules(rows, reading), rows.facts
        self.name = rows.title
        self.split = f"{split} {len(rows.table)} rows {rows.digest}"
        self.labels = self._labels()
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {self.name} has {self.labels.num_classes} classes")
        license = f", licence {rows.facts['license']}" if "license" in rows.facts else ""
        told = f"{self.name}{license}: {len(rows.table)} rows, classes {some(self.labels.names, 20)}"
        if self.blocks:
            held = f"{rows.table.held_bytes / 2**20:.1f} MiB of rows are held in each process"
            told += f"; they are streamed, and shuffled in blocks of up to {rows.table.buffer} rows; {held}"
        self.unused = (told, *proposals(self.labels), *rows.remarks)

    def _labels(self) -> LabelMap:
        """Of `classes=`, `classes.json` or `id2label.json`; DataError with a `classes.json` to fill in."""
        file = self.rows.name.options.get("classes") or repository_path(self.rows, "classes.json")
        if file is not None:
            return _read(file)
        ids = repository_file(self.rows, "id2label.json")
        if ids is not None:
            return LabelMap(names_of(ids, f"id2label.json of {self.name}"))
        raise DataError(self._wanted())

    def _wanted(self) -> str:
        way = "Write a file and add ?classes=FILE"
        return wanted(self.name, len(self), lambda i, rgb: read_stored(*self._mask(i, rgb)), way)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Where the rows begin that are shuffled together, and the end, of a stream; else none."""
        return getattr(self.rows.table, "blocks", ())

    def __len__(self) -> int:
        return len(self.rows.table)

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def size(self, index: int) -> tuple[int, int]:
        return self.rows.size(index, self.reading)

    def image(self, index: int) -> Tensor:
        return self.rows.pixels(index, self.reading)

    def _mask(self, index: int, how: Any) -> tuple[Path, Any, Reading, bytes]:
        """What functions of `data.reading` take: a word for the mask, their own argument, how to read, its bytes."""
        shown = f"{self.rows.shown(index)}, column {self.rows.columns['mask']}"
        return Path(shown), how, self.reading, self.rows.bytes(index, "mask")

    def _check_sizes(self, index: int, image: Tensor, labels: np.ndarray) -> None:
        files = (Path(f"the {what} of {self.rows.shown(index)}") for what in ("image", "mask"))
        check_sizes(image.shape[1:], labels.shape, *files, self.reading)

    def sample(self, index: int) -> Sample:
        image, labels = self.image(index), read_class_ids(*self._mask(index, self.labels))
        self._check_sizes(index, image, labels)
        return Sample(image, f"row_{index:06d}", labels)


class HubSegments(HubMaps):
    """Pictures with an RGB mask of segment ids (red + 256 green + 65536 blue) and `segments_info`."""

    holds = SEGMENTS

    def _labels(self) -> LabelMap:
        labels = super()._labels()
        if labels.things:
            return labels
        if labels.raw is not None:
            raise DataError(f'{self.name}: a table with "values" must have "things" too, the ids of those classes')
        marked = {(s["category_id"], bool(s["isthing"])) for s in self._listed(0) if "isthing" in s}
        for index in range(1, min(len(self), LOOKED_AT)):
            marked |= {(s["category_id"], bool(s["isthing"])) for s in self._listed(index) if "isthing" in s}
        if both := sorted({i for i, thing in marked if thing} & {i for i, thing in marked if not thing}):
            raise DataError(f"{self.name}: category {some(both)} is marked as a thing and as none")
        things = tuple(sorted(i for i, thing in marked if thing))
        if strange := [i for i in things if not 0 <= i < labels.num_classes]:
            raise DataError(f"{self.name}: category {some(strange)} has no name; there are {labels.num_classes}")
        if not things:
            hint = 'add ?classes=FILE with {"names": [...], "things": [ids]}'
            raise DataError(f"{self.name} does not say which classes are things, whose objects are counted; {hint}")
        return LabelMap(labels.names, labels.palette, labels.ignore_index, things)

    def _listed(self, index: int) -> list[dict[str, Any]]:
        return _entries(self.rows.table[index]["segments_info"])

    def _class_of(self, category: int, where: str) -> int | None:
        try:
            return category if self.labels.raw is None else self.labels.raw.class_of(category)
        except ValueError as error:
            raise DataError(f"{where}{error}") from None

    def _colours(self, index: int) -> np.ndarray:
        shown = f"{self.rows.shown(index)}, column {self.rows.columns['mask']}"
        with opened(io.BytesIO(self.rows.bytes(index, "mask")), shown) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise DataError(f"{shown} has mode {image.mode}; expected RGB")
            return np.asarray(image)[:, :, :3].astype(np.int32)

    def _segments(self, index: int) -> tuple[np.ndarray, list[tuple[int, bool]]]:
        """The map (H, W) of 1 + row, 0 for none, and class and crowd of each row."""
        red, green, blue = np.moveaxis(self._colours(index), 2, 0)
        codes, listed = red + 256 * green + 65536 * blue, self._listed(index)
        ids, where = np.zeros(codes.shape, np.int32), self.rows.shown(index)
        for row, segment in enumerate(listed, 1):
            own = codes == segment["id"]
            if segment["id"] == 0 or not own.any() or ids[own].any():
                wrong = "has no pixel" if not own.any() else "means none" if segment["id"] == 0 else "is listed twice"
                raise DataError(f"{where}: segment {segment['id']} of segments_info {wrong}")
            ids[own] = row
        if strange := sorted({*np.unique(codes[ids == 0]).tolist()} - {0}):
            raise DataError(f"{where} has pixels of segments {some(strange)}, which it does not list")
        return ids, [(s["category_id"], bool(s.get("iscrowd"))) for s in listed]

    def sample(self, index: int) -> Sample:
        image, (ids, rows) = self.image(index), self._segments(index)
        self._check_sizes(index, image, ids)
        where = f"{self.rows.shown(index)}, category_id: "
        own = [self._class_of(category, where) for category, _ in rows]
        kept = [i is not None for i in own]
        classes = np.array([i for i in own if i is not None], np.int64)
        check_ids(classes, self.labels, where)
        ids = ids if all(kept) else void(ids, kept)
        objects = Objects(ids, classes, np.array([crowd for _, crowd in rows], bool)[kept])
        table = np.array([self.labels.ignore_index, *classes])
        labels = table.astype(np.uint8 if table.max() < 256 else np.int32)[ids]
        return Sample(image, f"row_{index:06d}", labels if self.holds == SEGMENTS else None, objects)


class HubInstances(HubSegments):
    """Pictures with an RGB mask whose red is the class and whose green is the number of the object, 0 for none."""

    holds = MASKS

    def _labels(self) -> LabelMap:
        if "classes" in self.rows.name.options:
            labels = HubMaps._labels(self)
            return dataclasses.replace(labels, things=tuple(range(labels.num_classes)))
        names = names_of(self._table(0), f"semantic_class_to_id of {self.name}")
        return LabelMap(names, things=tuple(range(len(names))))

    def _table(self, index: int) -> dict[str, str]:
        """The name of each id, as row `index` has it."""
        ids = self.rows.table[index]["semantic_class_to_id"]
        ids = json.loads(ids) if isinstance(ids, str) else ids
        return {str(i): name for name, i in ids.items() if i is not None}

    @cached_property
    def _first(self) -> dict[str, str]:
        return self._table(0)

    def _segments(self, index: int) -> tuple[np.ndarray, list[tuple[int, bool]]]:
        if self._table(index) != self._first:
            raise DataError(f"{self.rows.shown(index)}: its semantic_class_to_id is another than that of row 0")
        red, green, _ = np.moveaxis(self._colours(index), 2, 0)
        codes = np.where(green > 0, red + 256 * green, 0)
        found, ids = np.unique(codes, return_inverse=True)
        if found[0] != 0:
            ids = ids + 1
        return ids.reshape(codes.shape).astype(np.int32), [(int(code) % 256, False) for code in found if code]

    def sample(self, index: int) -> Sample:
        found = super().sample(index)
        crops = tuple(found.objects.crop(m) for m in range(len(found.objects.classes)))
        return Sample(found.image, found.name, None, Objects(None, found.objects.classes, found.objects.crowd, crops))


class HubObjects(AnnotatedPictures):
    """Pictures with `objects`: boxes as x, y, width, height in pixels, and perhaps polygons or run lengths."""

    def __init__(self, rows: Rows, split: str, num_classes: int | None, reading: Reading | None) -> None:
        self.rows, self.reading, self.facts, self.faults = rows, rules(rows, reading), rows.facts, []
        self.name = rows.title
        self.split = f"{split} {len(rows.table)} rows {rows.digest}"
        self.root = self.file = Path(self.name)
        self._read(split)
        self._finish(rows.remarks, True, num_classes)

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return []

    @cached_property
    def _given(self) -> LabelMap | None:
        """Of `classes=`, or of a `classes.json` beside the data."""
        file = self.rows.name.options.get("classes") or repository_path(self.rows, "classes.json")
        return None if file is None else _read(file)

    def _table(self) -> LabelMap | None:
        return self._given if self._given is not None and self._given.raw is not None else None

    def _read(self, split: str) -> list[str]:
        column = self.rows.columns["objects"]
        listed = [_entries(entry) for entry in self.rows.table[column]]
        keys = [key for key in CATEGORIES if any(key in one for entries in listed for one in entries)]
        if len(keys) != 1 and any(listed):
            found = f"{', '.join(keys)}" if keys else "none"
            raise DataError(f"{self.name}: objects must have one of {', '.join(CATEGORIES)}; found {found}")
        self.labels, class_of = self._classes(listed, keys[0] if keys else CATEGORIES[0])
        sizes = [self.rows.size(index, self.reading) for index in range(len(listed))]
        pairs = ((one, size) for entries, size in zip(listed, sizes, strict=True) for one in entries)
        boxes = [(one["bbox"], size) for one, size in pairs if one.get("bbox")]
        corners = _are_corners(boxes, self.rows.name.options.get("boxes"), self.name)
        self.pictures = []
        for index, (entries, size) in enumerate(zip(listed, sizes, strict=True)):
            picture = Picture(index, f"row_{index:06d}.png", size, source=self.file)
            for place, one in enumerate(entries):
                name, where = f"objects[{place}]", f"{self.rows.shown(index)}, objects[{place}]"
                entry = _as_coco(one, corners)
                try:
                    category = class_of.get(one[keys[0]])
                    if category is None:
                        raise Refused(BAD_ENTRY, f"{where} is of category {one[keys[0]]!r}, which has no name")
                    picture.objects.append(annotation(entry, name, where, category, size, self.faults))
                except Refused as error:
                    self.faults.append(Fault(*error.args))
            self.pictures.append(picture)
        return []

    def _classes(self, listed: Sequence[list[dict[str, Any]]], key: str) -> tuple[LabelMap, dict[Any, int]]:
        found = {one[key] for entries in listed for one in entries if one.get(key) is not None}
        names, palette = (), ()
        if self._given is not None and self._given.raw is None:
            names, palette = self._given.names, self._given.palette
        elif known := _class_names(self.rows.table.features[self.rows.columns["objects"]], key):
            names = known
        elif found and all(isinstance(one, str) for one in found):
            names = tuple(sorted(found))
            self.rows.remarks.append(f"{self.name}: its classes are the names in its rows, {some(names, 20)}")
        elif (ids := repository_file(self.rows, "id2label.json")) is not None:
            names = names_of(ids, f"id2label.json of {self.name}")
        if not names:
            form = json.dumps({"names": [f"class_{i}" for i in range(int(max(found, default=0)) + 1)]})
            raise DataError(
                f"{self.name} does not name its categories {some(sorted(found), 20)}; add ?classes=FILE: {form}"
            )
        labels = LabelMap(names, palette, 255 if len(names) <= 255 else 65535, tuple(range(len(names))))
        return labels, {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def image(self, index: int) -> Tensor:
        return self.rows.pixels(index, self.reading)


def _read(file: str | Path) -> LabelMap:
    try:
        return LabelMap.from_json(file)
    except ValueError as error:
        raise DataError(str(error)) from error


def _entries(value: Any) -> list[dict[str, Any]]:
    """A list of dicts, or a dict of lists, as a list of dicts without what is None."""
    if isinstance(value, Mapping):
        value = [dict(zip(value, row, strict=True)) for row in itertools.zip_longest(*value.values())]
    return [{key: item for key, item in one.items() if item is not None} for one in value or []]


def _class_names(feature: Any, key: str) -> tuple[str, ...]:
    """The names of a ClassLabel inside of `objects`."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    own = inner.get(key) if isinstance(inner, Mapping) else None
    return tuple(getattr(own, "names", None) or getattr(getattr(own, "feature", None), "names", None) or ())


def _as_coco(one: Mapping[str, Any], corners: bool) -> dict[str, Any]:
    entry = {key: one[key] for key in ("bbox", "segmentation", "area", "iscrowd") if key in one}
    if corners and len(entry.get("bbox", ())) == 4:
        x1, y1, x2, y2 = entry["bbox"]
        entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    return entry


def _are_corners(boxes: list[tuple[Sequence[float], tuple[int, int]]], said: str | None, name: str) -> bool:
    """Whether boxes are x1, y1, x2, y2; DataError where they look so and nobody has said it, or are no pixels."""
    if boxes and all(0 <= value <= 1 for box, _ in boxes for value in box):
        text = "all numbers of its boxes lie in 0..1: they are shares of the pictures, and pixels are read"
        raise DataError(f"{name}: {text}; multiply them by width and height")
    if said is not None:
        if said not in ("corners", "widths"):
            raise DataError(f"{name}: boxes={said!r}; expected corners or widths")
        return said == "corners"
    beyond = [b for b, (h, w) in boxes if len(b) == 4 and (b[0] + b[2] > w + 1 or b[1] + b[3] > h + 1)]
    fitting = all(len(b) == 4 and b[0] <= b[2] <= w + 1 and b[1] <= b[3] <= h + 1 for b, (h, w) in boxes)
    if boxes and fitting and len(beyond) > len(boxes) / 10:
        text = f"as x, y, width, height {len(beyond)} of its {len(boxes)} boxes reach out of their pictures"
        raise DataError(f"{name}: {text}, as corners none; add ?boxes=corners, or ?boxes=widths if they are right")
    return False
