"""Look at every sample of a data set, and at every entry of those with annotated objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.data.annotated import AnnotatedPictures
from fapn_zoo.data.check_pictures import PictureFacts
from fapn_zoo.data.check_report import CheckReport
from fapn_zoo.data.coco_instances import USUAL
from fapn_zoo.data.folders import FolderDataset
from fapn_zoo.data.listing import printable
from fapn_zoo.data.mask_folder import MaskFolder
from fapn_zoo.data.reading import UnreadableFile, check_sizes
from fapn_zoo.data.reading_rules import Reading, reading_of
from fapn_zoo.data.sample import DataError, Dataset, Sample
from fapn_zoo.data.supervision import SplitCounts
from fapn_zoo.runtime.progress import bar

SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # pixels up to which an object counts as such


def check_samples(
    report: CheckReport,
    kind: type[Dataset],
    source: str | Path,
    num_classes: int | None,
    progress: bool,
    reading: Reading | None,
) -> None:
    """Checks every split of a data set that is opened as `kind`: what it says of itself, and sample by sample."""
    options = {"strict": False} if issubclass(kind, AnnotatedPictures | FolderDataset) else {}
    first, listed = None, getattr(kind, "splits", None)
    try:
        splits = listed(source) or [USUAL[0]] if listed else USUAL  # one that is not there says what is looked for
    except DataError as error:
        report.add("data that cannot be opened", report.root, error)
        return
    for split in splits:
        try:
            data = kind(source, split, num_classes, reading, **options)
        except (DataError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and not listed and (report.opened or split != USUAL[-1]):
                continue
            report.add("split that cannot be opened", report.root, error)
            continue
        file = getattr(data, "file", report.root)
        for fault in getattr(data, "faults", ()):
            report.add(fault.kind, fault.file or file, fault.text, error=fault.error)
        for text in getattr(data, "remarks", None) or (() if options else getattr(data, "unused", ())):
            report.add("what is used", file, text, error=False)
        ours = (data.labels.names, data.labels.things, data.labels.category_ids)
        if first is not None and ours != first:
            report.add("other categories", file, f"{file} has other categories than the splits before it")
            continue
        first, report.labels, name = ours, data.labels, split or file.stem
        report.opened[name] = data
        if len(report.opened) == 1:
            report.pictures = PictureFacts(reading_of(data))
        report.splits[name] = SplitCounts.of(
            len(data), data.labels.num_classes, "pixel" if "labels" in data.holds else "object"
        )
        _Split(report, data, name, report.splits[name]).check(progress)


class _Split:
    """One split as it is looked through."""

    def __init__(self, report: CheckReport, data: Any, name: str, counts: SplitCounts) -> None:
        self.report, self.data, self.name, self.counts = report, data, name, counts
        self.areas: list[float] = []  # of objects that are no crowds, as they are scored
        self.empty = self.crowds = 0

    def check(self, progress: bool) -> None:
        in_files = isinstance(self.data, AnnotatedPictures) and len(self.data) and self.data.files(0)
        look = self._annotated if in_files else self._labelled if isinstance(self.data, MaskFolder) else self._sample
        for index in bar(progress, iterable=range(len(self.data)), desc="check", unit="image"):
            look(index)
        if "boxes" in self.data.holds:
            self._sum_up()

    def _sum_up(self) -> None:
        places = np.bincount(np.searchsorted([*SIZES.values()], np.array(self.areas)), minlength=len(SIZES))
        sizes = ", ".join(f"{number:,} {size}" for size, number in zip(SIZES, places.tolist(), strict=True))
        objects = f"{len(self.areas):,} objects ({sizes}), {self.crowds:,} crowds"
        text = f"{self.name}: {len(self.data):,} pictures, {self.empty:,} without objects; {objects}"
        self.report.facts.append(f"{text}; {' and '.join(sorted(self.data.holds))}")
        if self.counts.unit == "pixel" and not self.areas:
            what = "all segments are crowds" if self.crowds else "no segments at all"
            file = getattr(self.data, "file", self.report.root)
            self.report.add("nothing to learn of objects", file, f"{self.name}: {what}")

    def _sample(self, index: int) -> None:
        """A sample of which no more is known than what it gives."""
        files = self.data.files(index)
        place = files[0] if files else Path(f"{self.name} {index}")
        try:
            sample = self.data.sample(index)
        except DataError as error:
            self.report.add("bad file", files[1] if len(files) > 1 else place, error)
            sample = None
        self._picture(index, place, None if files or sample is None else sample)
        if sample is None:
            return
        if sample.labels is not None:
            self.counts.add_labels(sample.labels, self.data.labels)
        if (objects := sample.objects) is None:
            return
        self._add_areas(np.asarray(objects.areas)[~objects.crowd].tolist(), len(objects.classes))
        self.empty += not len(objects.classes)
        if self.counts.unit == "object":
            self.counts.add(np.bincount(objects.classes[~objects.crowd], minlength=self.data.labels.num_classes + 1))

    def _labelled(self, index: int) -> None:
        """A picture and its label file, each of which is read whatever is wrong with the other."""
        image, labels = self.data.files(index)
        size = self._picture(index, image)
        try:
            found = self.data.class_ids(index)
            self.counts.add_labels(found, self.data.labels)
            if size is not None:
                check_sizes(size, found.shape, image, labels, self.data.reading)
        except DataError as error:
            kind = "unreadable file" if isinstance(error, UnreadableFile) else "bad file"
            self.report.add(kind, labels, error)

    def _picture(self, index: int, path: Path, sample: Sample | None = None) -> tuple[int, int] | None:
        """The picture file of a sample, or the picture that it has instead; (height, width) where it can be read."""
        if sample is not None:
            self.report.pictures.sizes[sample.size] += 1
            self.report.remember(self.name, path, sample.image.numpy().tobytes())
            return sample.size
        if not path.is_file():
            return None  # said already
        try:
            shape = self.report.pictures.read(path).shape[1:]
        except UnreadableFile as error:
            self.report.add("unreadable file", path, error)
            return None
        self.report.remember(self.name, path)
        self.report.pictures.turned.add(self.data, index)
        if isinstance(self.data, AnnotatedPictures):
            try:
                self.data.check_size(index, shape)
            except DataError as error:
                self.report.add("size mismatch", path, error)
        return shape

    def _annotated(self, index: int) -> None:
        """A picture and the entries of its objects."""
        picture = self.data.pictures[index]
        self.counts.add(self.data.listed(index))
        self.empty += not picture.objects
        self._picture(index, picture.path)
        with contextlib.suppress(UnreadableFile):  # said already
            self._add_areas(list(self._entries(self.data.picture(index))), len(picture.objects))

    def _add_areas(self, found: list[float], objects: int) -> None:
        self.areas += found
        self.crowds += objects - len(found)

    def _entries(self, picture: Any) -> Iterator[float]:
        """The areas of all objects that are no crowds; what is wrong with their masks is added to the report."""
        for one in picture.objects:
            where, own = f"{picture.source}: {one.name} of {printable(picture.file_name)}", 0.0
            if one.shape is not None:
                try:
                    own = float(np.count_nonzero(self.data.crop(picture, one).pixels))
                except DataError as error:
                    self.report.add("bad mask", picture.source, error)
                    continue
                if not own:
                    text = f"{where}: it is not trained"
                    self.report.add("masks without a pixel", picture.source, text, error=False)
            elif one.box is not None:
                own = (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])
            if one.area == 0 < own:
                text = f"{where}: it is scored as a small object"
                self.report.add("areas of 0", picture.source, text, error=False)
            if not one.crowd:
                yield own if one.area is None else one.area
