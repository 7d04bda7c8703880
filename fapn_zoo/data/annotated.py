"""Pictures with annotated objects: what data sets of boxes and polygons share, whatever format they are stored in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from torch import Tensor

from fapn_zoo.data.coco_annotations import Annotation, Fault, Picture, check_faults, summary
from fapn_zoo.data.columns import packed
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.mask_folder import table_of
from fapn_zoo.data.merging import folder_table, merged
from fapn_zoo.data.reading import check_sizes, read_image
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import BOXES, MASKS, Crop, DataError, Objects, Sample


class AnnotatedPictures(ABC):
    """A split of pictures whose objects are listed: boxes, polygons, run lengths, crowds. All classes are things.

    A format is a subclass with `splits` and `_read`. Pictures without objects are kept. Where an object has no mask the
    data set holds boxes alone. Boxes are as annotated, also where they reach out of the picture: so COCO's evaluation
    takes them. A `classes.json` in the folder may hold `white_level` and `exif` (see `FolderDataset`).

    Args:
        strict: raise errors of single entries; else they are in `faults` alone, and entries without one are used.

    Attributes:
        file: what an error is of where no other file is: the annotation file, or the folder.
        faults: everything about single entries that is wrong or worth knowing.
        remarks: sentences on what is used. unused: both but for errors, in few sentences, told when it is opened.

    Raises:
        FileNotFoundError: no such folder, split or folder of pictures; the message names what was looked for.
        DataError: annotations that cannot be used, or a picture that is not there; the message names the file, the
            entry, and how many more there are.
    """

    file: Path
    labels: LabelMap
    pictures: list[Picture]

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        reading: Reading | None = None,
        strict: bool = True,
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self.name = os.path.basename(os.path.realpath(self.root))
        if not self.root.exists():
            raise FileNotFoundError(f"no data folder {self.root}")
        self.reading = read_rules(self.root, reading)
        self.faults: list[Fault] = []
        self._finish(self._read(split), strict, num_classes)

    def _finish(self, remarks: Sequence[str], strict: bool, num_classes: int | None) -> None:
        """What holds of all formats, once the annotations are read."""
        check_faults(self.faults, self.root, strict)
        columns = packed(self.pictures)
        if table := self._table():
            source = self.labels
            self.labels, ids = merged(source, self._numbers(), table, self.file)
            dropped = columns.renumber(ids, self.pictures)
            left = f"; {dropped:,} objects of ignored ones are left out" if dropped else ""
            text = f"{len(source.names)} categories become {self.labels.num_classes} classes{left}"
            remarks = [f"{self.file}: {text}", table_of(self.labels), *remarks]
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {self.file} lists {self.labels.num_classes} classes")
        maskless = columns.without_mask()
        self.holds = BOXES if maskless else MASKS
        if 0 < len(maskless) < len(columns):
            first = columns[maskless[0]].name
            which = f"{len(maskless):,} of {len(columns):,} objects have no mask, such as {first}"
            remarks = [f"{self.file}: only boxes are used: {which}", *remarks]
        self.remarks = tuple(remarks)
        self.unused = (*summary(self.faults, error=False), *self.remarks)

    @classmethod
    @abstractmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits of a folder of this format, "" where it has pictures without any; none where it is of another."""

    @abstractmethod
    def _read(self, split: str) -> list[str]:
        """Sets `file`, `labels` and `pictures`, adds to `faults`, and returns sentences on what is used."""

    def _table(self) -> LabelMap | None:
        """The table that merges categories, where there is one."""
        return folder_table(self.root if self.root.is_dir() else self.root.parent)

    def _numbers(self) -> Sequence[int]:
        """What files of this format call the classes, where not by name."""
        return range(self.labels.num_classes)

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, index: int) -> Picture:
        """Sample `index` with its size, and its objects in pixels."""
        return self.pictures[index]

    def listed(self, index: int) -> np.ndarray:
        """(K + 1,) int64: objects of sample `index` by class that are no crowds; 0 at the end."""
        objects = self.pictures[index].objects
        return np.bincount(objects.columns.classes(objects.rows), minlength=self.labels.num_classes + 1)

    def files(self, index: int) -> tuple[Path, ...]:
        """The picture of sample `index` and, where there is one, the file with its objects."""
        picture = self.pictures[index]
        return (picture.path,) if picture.source is None else (picture.path, picture.source)

    def size(self, index: int) -> tuple[int, int]:
        return self.picture(index).size

    def sample(self, index: int) -> Sample:
        name = printable(PurePath(self.pictures[index].file_name).with_suffix("").as_posix())
        return Sample(self.image(index), name, None, self.objects(index))

    def image(self, index: int) -> Tensor:
        """The picture of sample `index`. DataError where it is of another size than its annotations say."""
        image = read_image(self.pictures[index].path, self.reading)
        self.check_size(index, image.shape[1:])
        return image

    def check_size(self, index: int, size: Sequence[int]) -> None:
        """DataError where the picture of sample `index` is of another (height, width) than its annotations say."""
        picture = self.picture(index)
        check_sizes(size, picture.size, picture.path, picture.source, self.reading)

    def objects(self, index: int) -> Objects:
        """The objects of sample `index`, whose picture is not read. DataError for run lengths that make no mask."""
        picture = self.picture(index)
        crops = [self.crop(picture, one) for one in picture.objects] if self.holds == MASKS else None
        boxes = np.zeros((len(picture.objects), 4))
        areas = np.zeros(len(picture.objects))
        for m, one in enumerate(picture.objects):
            crop = crops[m] if crops is not None else None
            if one.box is None and crop is None:
                crop = self.crop(picture, one)
            boxes[m] = _around(crop) if one.box is None else one.box
            own = (boxes[m, 2:] - boxes[m, :2]).prod() if crop is None else np.count_nonzero(crop.pixels)
            areas[m] = own if one.area is None else one.area
        classes = np.array([one.category for one in picture.objects], np.int64)
        crowd = np.array([one.crowd for one in picture.objects], bool)
        return Objects(None, classes, crowd, None if crops is None else tuple(crops), boxes, areas)

    def crop(self, picture: Picture, found: Annotation) -> Crop:
        """The mask of an object that has one. DataError, which names it, for run lengths that make none."""
        try:
            return crop_of(found.shape, picture.size)
        except ValueError as error:
            where = f"{picture.source}: {found.name} of {printable(picture.file_name)}"
            raise DataError(f"{where}: {error}") from None


def _around(crop: Crop) -> tuple[int, int, int, int]:
    return crop.x, crop.y, crop.x + crop.pixels.shape[1], crop.y + crop.pixels.shape[0]


def one_split(found: Sequence[str], split: str, root: Path, words: Sequence[str] = ()) -> str:
    """The split of a folder that is meant: `split`, another word for it, or the only one, which has no name.

    FileNotFoundError, which names those there are.
    """
    for name in (split, *words):
        if name in found:
            return name
    if [*found] == [""]:
        return ""
    raise FileNotFoundError(f"no split {split!r} in {root}; it has {', '.join(filter(None, found)) or 'none'}")
