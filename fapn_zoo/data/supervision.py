"""What a data set has of its classes, and whether anything can be learnt from that."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.coco_annotations import Fault
from fapn_zoo.data.hints import ignored_hint
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.loader import epoch_order
from fapn_zoo.data.mask_folder import MaskFolder
from fapn_zoo.data.panoptic_sources import CocoPanoptic
from fapn_zoo.data.sample import OBJECTS, DataError, Dataset
from fapn_zoo.data.sources import JoinedDataset
from fapn_zoo.runtime.processes import processes
from fapn_zoo.runtime.tables import some

logger = logging.getLogger(__name__)

SECONDS = 10.0  # that a training may spend on counting
BLOCK = 32  # samples between two looks at the clock
MOSTLY = 0.99  # a share of ignored pixels that is hardly meant
ENOUGH = 500  # samples, drawn at random, that leave no doubt that all are alike


@dataclass
class SplitCounts:
    """What one split holds of each class; the last entry is what is ignored.

    Attributes:
        samples: how many there are.
        pixels: (K + 1,) int64, of the samples seen; segments or objects, where these are counted.
        images: (K + 1,) int64, how many samples have the class.
        beside: (K + 1,) int64, how many of those in which something is ignored have it.
        seen: how many samples were counted.
        unit: "pixel", "segment" or "object".
    """

    samples: int
    pixels: np.ndarray
    images: np.ndarray
    beside: np.ndarray
    seen: int = 0
    unit: str = "pixel"

    @classmethod
    def of(cls, samples: int, num_classes: int, unit: str = "pixel") -> SplitCounts:
        """Nothing counted yet."""
        return cls(samples, *np.zeros((3, num_classes + 1), np.int64), unit=unit)

    @property
    def ignored(self) -> float:
        """The share of what is ignored."""
        return int(self.pixels[-1]) / max(int(self.pixels.sum()), 1)

    def line(self, labels: LabelMap) -> str:
        """What every class has, in one line: its share of the pixels, or how many segments or objects."""
        whole = max(int(self.pixels.sum()), 1)
        numbers = [f"{n / whole:.1%}" if self.unit == "pixel" else f"{n:,}" for n in self.pixels.tolist()]
        rows = [f"{i} {name} {number}" for i, (name, number) in enumerate(zip(labels.names, numbers, strict=False))]
        ignored = f", ignored {numbers[-1]}" if self.pixels[-1] else ""
        what = "share of the pixels" if self.unit == "pixel" else f"{self.unit}s"
        seen = "" if self.seen == self.samples else f", counted in {self.seen:,} of {self.samples:,} pictures"
        return f"classes and their {what}{seen}: {some(rows, 40)}{ignored}"

    def add(self, row: np.ndarray) -> None:
        """Adds one sample's (K + 1,) numbers."""
        self.pixels += row
        self.images += row > 0
        self.beside += (row > 0) & (row[-1] > 0)
        self.seen += 1

    def add_labels(self, labels: np.ndarray, table: LabelMap) -> None:
        """Adds one sample's label map, whose values are all classes or ignored."""
        self.add(_by_class(_histogram(labels, table), table))


def _histogram(labels: np.ndarray, table: LabelMap) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=max(table.num_classes, table.ignore_index + 1))


def _by_class(number: np.ndarray, table: LabelMap) -> np.ndarray:
    """(K + 1,) of a histogram; a class that is named and ignored at once counts as ignored."""
    row = np.append(number[: table.num_classes], number[table.ignore_index])
    if table.ignore_index < table.num_classes:
        row[table.ignore_index] = 0
    return row


def count_classes(dataset: Dataset, unit: str = "pixel", seconds: float = SECONDS) -> SplitCounts:
    """Counts what a data set has of its classes; label files only are read.

    It ends early when every class has been seen and no more can be found wrong, or when the time is up; samples are
    taken in a random order, always the same, so that they are spread over the whole set.

    Args:
        unit: "pixel"; "segment" counts segments that are no crowds, "object" those of things.

    Raises:
        DataError: a label file that cannot be read, or holds ids out of range.
    """
    table = dataset.labels
    counts = SplitCounts.of(len(dataset), table.num_classes, unit)
    scored = _scored(table, unit)
    order = epoch_order(dataset, np.random.default_rng(0)).tolist()
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(order), BLOCK):
            for row in pool.map(partial(_of_sample, dataset, unit), order[start : start + BLOCK]):
                counts.add(row)
            settled = counts.pixels[scored].all() and counts.ignored < MOSTLY
            if (settled and _never_beside(scored, counts) is None) or time.monotonic() > end:
                break
    return counts


def pixel_shares(dataset: Dataset, most: int = 1000) -> list[float]:
    """Which share of the labelled pixels each class has, in so many samples at most, drawn at random, always the same.

    Raises DataError as `count_classes`.
    """
    order = epoch_order(dataset, np.random.default_rng(0))[:most].tolist()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pixels = sum(pool.map(partial(_of_sample, dataset, "pixel"), order))[:-1]
    return (pixels / max(int(pixels.sum()), 1)).tolist()


def _of_sample(dataset: Dataset, unit: str, index: int) -> np.ndarray:
    """(K + 1,) int64 of one sample, without decoding its image where that can be avoided."""
    table = dataset.labels
    if isinstance(dataset, JoinedDataset):
        part, place = dataset.where(index)
        return _of_sample(part, unit, place)
    if isinstance(dataset, AnnotatedPictures):
        return dataset.listed(index)
    if isinstance(dataset, CocoPanoptic):
        return dataset.listed(index, unit == "pixel")
    if unit != "pixel":
        objects = dataset.sample(index).objects
        return _by_class(_histogram(objects.classes[~objects.crowd], table), table)
    labels = dataset.class_ids(index) if isinstance(dataset, MaskFolder) else dataset.sample(index).labels
    return _by_class(_histogram(labels, table), table)


NOTHING, NEVER, VOID = "nothing to learn", "classes that never occur", "nearly all is ignored"
TWO_WAYS = "one class stored in two ways"


def findings(where: str, labels: LabelMap, counts: SplitCounts) -> Iterator[Fault]:
    """What makes a split useless for training or a part of its classes unlearnable; values out of range are not said.

    Args:
        where: the split, for the text.
    """
    scored, unit = _scored(labels, counts.unit), counts.unit
    if len(scored) < 2 and unit == "pixel":
        yield Fault(NOTHING, f"{where}: {_one_class(labels)}", True)
        return
    if not counts.seen:
        return
    present = [i for i in scored if counts.pixels[i]]
    absent = [i for i in scored if not counts.pixels[i]]
    least = 2 if unit == "pixel" else 1
    seen = "" if counts.seen == counts.samples else f" (counted {counts.seen:,} of {counts.samples:,} files)"
    value = labels.ignore_index
    if len(present) < least:
        alike = not present or counts.images[-1] > counts.seen / 2  # not a class that is rare
        sure = counts.seen == counts.samples or (alike and counts.seen >= ENOUGH)
        yield Fault(NOTHING, f"{where}: {_too_few(labels, counts, present, absent)}{seen}", sure)
        return
    if absent:
        yield Fault(NEVER, f"{where}: {some((labels.names[i] for i in absent), 20)}{seen}", False)
    if unit == "pixel" and (lost := _never_beside(scored, counts)) is not None:
        held = f"{counts.images[lost]:,} hold {lost}, {counts.images[-1]:,} hold {value}, none both"
        text = f"{where}: of {counts.seen:,} label files {held}: {ignored_hint([lost], labels)}, if it is no void"
        yield Fault(TWO_WAYS, text, False)
    if counts.ignored > MOSTLY and unit == "pixel":
        yield Fault(VOID, f"{where}: {counts.ignored:.2%} of the pixels have the ignored value {value}{seen}", False)


def _never_beside(scored: list[int], counts: SplitCounts) -> int | None:
    """Of two classes the one that is in no sample in which something is ignored, where the other is in all of these."""
    found = [i for i in scored if counts.pixels[i] and not counts.beside[i]]
    alike = len(scored) == 2 and counts.beside[-1] and max(counts.beside[scored]) == counts.beside[-1]
    return found[0] if alike and len(found) == 1 else None


def _scored(labels: LabelMap, unit: str) -> list[int]:
    ids = labels.things if unit == "object" else range(labels.num_classes)
    return [i for i in ids if i != labels.ignore_index]


def _one_class(labels: LabelMap) -> str:
    fix = 'set "ignore_index" to a value that no pixel has, such as 255'
    if labels.num_classes == 1:
        both = f'{{"names": ["background", "{labels.names[0]}"]}}'
        fix = f"name what is not {labels.names[0]} as a class of its own, such as {both} with the ids 0 and 1"
    left = "one class only" if labels.num_classes == 1 else f"ignore_index {labels.ignore_index} leaves one class only"
    return f"{left}, {labels.names[-1]!r}, so that every answer is right; {fix}"


def _too_few(labels: LabelMap, counts: SplitCounts, present: list[int], absent: list[int]) -> str:
    value, ignored, unit = labels.ignore_index, int(counts.pixels[-1]), counts.unit
    if unit != "pixel":
        return f"no {unit} of any class that is no crowd, of {some(labels.names[i] for i in absent)}"
    if not present and not ignored:
        return "no pixel of any class"
    if not present:
        hint = f"; {hint}" if (hint := ignored_hint(absent, labels)) else ""
        return f"every pixel has the value {value}, which is ignored: no class has any{hint}"
    only = present[0]
    if not ignored:
        who = f"only {labels.names[only]!r} has pixels ({int(counts.pixels[only]):,})"
        return f"{who}, none has {some(repr(labels.names[i]) for i in absent)}: every label holds only {only}"
    both = " and ".join(map(str, sorted((only, value))))
    return f"every label holds only {both}, and {value} is ignored: {ignored_hint(absent, labels)}"


def check_supervision(dataset: Dataset, val: Dataset | None, needs: Collection[str]) -> None:
    """Whether a training on `dataset`, evaluated on `val`, can learn anything; what is doubtful is logged as a warning.

    Args:
        needs: of the task: whether segments or objects are learnt, or the classes of pixels.

    Raises:
        DataError: nothing can be learnt, with the fix; or a label file that is bad.
    """
    unit = "segment" if "segments" in needs else "object" if OBJECTS & {*needs} else "pixel"
    counts = count_classes(dataset, unit)
    said = []
    for found in findings(f"{dataset.name}, to train on", dataset.labels, counts):
        if found.error:
            raise DataError(f"{found.kind}: {found.text}")
        said.append(f"{found.kind}: {found.text}")
    if val is not None:
        theirs = count_classes(val, unit, SECONDS / 2)
        said += _of_validation(val, counts, theirs)
    if processes().main:
        logger.info("%s: %s", dataset.name, counts.line(dataset.labels))
        for text in said:
            logger.warning("%s", text)


def _of_validation(val: Dataset, train: SplitCounts, counts: SplitCounts) -> Iterator[str]:
    scored, names = _scored(val.labels, counts.unit), val.labels.names
    present = [i for i in scored if counts.pixels[i]]
    seen = "" if counts.seen == counts.samples else f" (counted {counts.seen:,} of {counts.samples:,} files)"
    if not present:
        what = f"{val.name}, to evaluate on, has no {counts.unit} of any class{seen}"
        yield f"nothing to score: {what}; there will be no scores"
    elif len(present) == 1 and counts.unit == "pixel":
        yield f"little to score: only {names[present[0]]!r} has pixels in {val.name}, to evaluate on{seen}"
    strange = [names[i] for i in present if not train.pixels[i] and train.seen == train.samples]
    if strange:
        yield f"{val.name}, to evaluate on, has classes that the training set lacks: {some(strange, 20)}"
