"""Pictures with a file of labels each: what such data sets share, wherever the files lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.listing import printable
from fapn_zoo.data.raw_values import shown
from fapn_zoo.data.reading import check_sizes, read_class_ids, read_image, stored_size
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import LABELS, Sample
from fapn_zoo.runtime.tables import some

VOID = ("unlabeled", "unlabelled", "void", "background", "ignore", "ignored", "_background_", "unknown")


class MaskFolder:
    """A split of pictures with a label file each, whose values become class ids by `labels`.

    A layout is a subclass that sets all of the attributes.

    Attributes:
        pairs: name, picture and label file of every sample. unused: sentences, told when it is opened.
    """

    holds = LABELS
    root: Path
    split: str
    name: str
    labels: LabelMap
    reading: Reading
    pairs: list[tuple[str, Path, Path]]
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, Path]:
        """The picture file and the label file of sample `index`."""
        return self.pairs[index][1:]

    def size(self, index: int) -> tuple[int, int]:
        return stored_size(self.pairs[index][2], self.reading)  # a header is read faster than a JPEG's

    def image(self, index: int) -> Tensor:
        """The picture of sample `index`. DataError where it cannot be read."""
        return read_image(self.pairs[index][1], self.reading)

    def class_ids(self, index: int) -> np.ndarray:
        """The class ids (H, W) of sample `index`. DataError for a file without them, or values that are of no class."""
        return read_class_ids(self.pairs[index][2], self.labels, self.reading)

    def sample(self, index: int) -> Sample:
        name, image_path, label_path = self.pairs[index]
        image, labels = self.image(index), self.class_ids(index)
        check_sizes(image.shape[1:], labels.shape, image_path, label_path, self.reading)
        return Sample(image, printable(name), labels)


def proposals(labels: LabelMap) -> list[str]:
    """Sentences on classes whose names say that they are none: nobody but the user decides that."""
    found = []
    for i, name in enumerate(labels.names):
        if name.lower() in VOID and i != labels.ignore_index:
            own = [list(v) if isinstance(v, tuple) else v for v in (labels.raw.of_class(i) if labels.raw else [i])]
            way = f'a classes.json without it, with "ignored_values": {own}, would leave it out'
            found.append(f"class {name!r} is trained and scored like every other; {way}")
    return found


def table_of(labels: LabelMap) -> str:
    """Every class with what is stored for it, in one line; "" where that is its id."""
    if labels.raw is None:
        return ""
    rows = [f"{i} {name} ({some(map(shown, labels.raw.of_class(i)))})" for i, name in enumerate(labels.names)]
    ignored = f"; ignored: {some(map(shown, labels.ignored_values), 20)}" if labels.ignored_values else ""
    return f"stored values of its classes: {some(rows, 30)}{ignored}"
