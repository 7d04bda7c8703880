"""Facts of the pictures of a data set that no single file tells: their range, their bands, and which are turned."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.coco_annotations import Fault
from fapn_zoo.data.decoding import Decoded, header
from fapn_zoo.data.images import DARK, UnknownWhite, decode_safely, white_of
from fapn_zoo.data.opening import ImageError, upright_size
from fapn_zoo.data.reading import EXIF_WHERE, UnreadableFile
from fapn_zoo.data.reading_rules import Reading, proposed_level, reading_of

logger = logging.getLogger(__name__)
MOST_SIZES = 5  # that are listed one by one
SCANNED = 200  # pictures whose headers are looked at before a training


@dataclass
class _Range:
    """Pictures of one container: how many, their highest value and its file, and the white that they are read with."""

    count: int = 0
    high: float = -np.inf
    file: Path = Path()
    white: float | None = None
    stated: bool = False
    real: bool = False


@dataclass
class Turned:
    """Pictures and labels with EXIF orientations: those that are turned against each other, and those alike."""

    apart: int = 0
    fits_stored: int = 0  # of these: where the sizes say that the labels were drawn on the stored pixels
    fits_turned: int = 0  # or on the turned ones
    alike: int = 0
    file: Path = Path()

    def add(self, dataset: Any, index: int) -> None:
        """Compares the picture and the labels of a sample; labels of json have a size and no orientation."""
        try:
            picture, labels, *_ = dataset.files(index)
            image_size, image = header(picture)
            label_size, label = (dataset.size(index), 1) if labels.suffix == ".json" else header(labels)
        except Exception:  # what is wrong with them, reading them says
            return
        if image == label == 1:
            return
        self.file = picture
        self.alike += image == label
        self.apart += image != label
        if label == 1 and image > 4 and image_size[0] != image_size[1]:
            self.fits_stored += label_size == image_size
            self.fits_turned += label_size == image_size[::-1]

    def sentence(self, reading: Reading, of: str = "") -> str:
        """What to say of them; "" if nothing is turned."""
        if not self.apart + self.alike:
            return ""
        if not reading.turns:
            count = self.apart + self.alike
            return f"{count} pictures or labels{of} have an EXIF orientation, which exif=ignore leaves out"
        if not self.apart:
            return f"EXIF orientations turn {_pictures(self.alike)}{of} and the labels alike"
        advice = f"if the labels were drawn on the stored pixels, set exif=ignore ({EXIF_WHERE})"
        if self.fits_stored and not self.fits_turned:
            advice = f"the sizes of {self.fits_stored} fit exif=ignore only: set it ({EXIF_WHERE})"
        elif self.fits_turned and not self.fits_stored:
            advice = f"the sizes of {self.fits_turned} fit the turned pictures: exif=apply is right"
        return f"EXIF orientations turn {_pictures(self.apart)}{of} otherwise than the labels: {advice}"


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


@dataclass
class PictureFacts:
    """Reads pictures as a training would, and gathers what is to be said of all of them together."""

    reading: Reading
    turned: Turned = field(default_factory=Turned)
    ranges: dict[str, _Range] = field(default_factory=dict)
    bands: dict[int, list[Path]] = field(default_factory=lambda: defaultdict(list))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width), turned
    containers: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path) -> np.ndarray:
        """A picture as (C, H, W), whatever its bands; only its shape is as in training. Raises UnreadableFile."""
        try:
            found = decode_safely(path, str(path), None)
            if not isinstance(found.values, Image.Image):
                with contextlib.suppress(UnknownWhite):  # said once, of all of them
                    white_of(found, self.reading.white_level, str(path))
        except (ImageError, FileNotFoundError) as error:
            raise UnreadableFile(str(error)) from error
        self._add(found, path)
        values = found.values
        size = (values.height, values.width) if isinstance(values, Image.Image) else values.shape[1:]
        height, width = upright_size(size, found.orientation if self.reading.turns else 1)
        self.sizes[height, width] += 1
        self.containers[f"{found.container} {found.kind}"] += 1
        return np.broadcast_to(np.uint8(0), (found.bands, height, width))

    def _add(self, found: Decoded, path: Path) -> None:
        self.bands[found.bands if found.kind == "bands" else 3].append(path)
        if isinstance(found.values, Image.Image) or (found.stated and found.white == 255):
            return
        container = found.container.split(" of ")[0]
        here = self.ranges.setdefault(container, _Range())
        high = found.colours.max().item()
        here.count += 1
        if high > here.high:
            here.high, here.file = high, path
        here.stated, here.real = found.stated, found.values.dtype.kind == "f"
        level = self.reading.white_level
        here.white = found.white if found.stated or level is None else level

    def summary(self) -> list[str]:
        """Sentences on the sizes, width x height, and containers of all pictures."""
        found = [f"{container} ({count:,})" for container, count in self.containers.most_common()]
        sizes = [f"{width}x{height} ({count:,})" for (height, width), count in self.sizes.most_common()]
        if len(sizes) > MOST_SIZES:
            high, wide = zip(*self.sizes, strict=True)
            spans = f"widths {min(wide)} to {max(wide)}, heights {min(high)} to {max(high)}"
            sizes = [f"{len(sizes):,} sizes, {spans}"]
        return [f"pictures: {', '.join([*found, *sizes])}"] if sizes else []

    def faults(self) -> Iterator[Fault]:
        """Everything that is to be said."""
        if said := self.turned.sentence(self.reading):
            yield Fault("EXIF orientation", said, False, self.turned.file)
        for container, found in self.ranges.items():
            said, error = self._range(container, found)
            yield Fault("white level unknown" if error else "range of pictures", said, error, found.file)
        if len(self.bands) > 1:
            counts = ", ".join(f"{len(files)} of {n} (such as {files[0]})" for n, files in sorted(self.bands.items()))
            file = min(self.bands.values(), key=len)[0]
            yield Fault("different numbers of bands", f"pictures: {counts}", file=file)
        elif self.bands and 3 not in self.bands:
            (count, files), *_ = self.bands.items()
            yield Fault("bands", f"pictures have {count} bands: train with in_chans={count}", False, files[0])

    def _range(self, container: str, found: _Range) -> tuple[str, bool]:
        """What to say of the pictures of one container, and whether they cannot be read so."""
        level, proposed = self.reading.white_level, proposed_level(found.high, found.real)
        text = f"{_pictures(found.count)} ({container}): highest value {found.high:.10g} in {found.file}"
        if found.white is None or (level is None and not found.stated and found.high > found.white):
            return f"{text}, and nobody says which is white: set white_level={proposed} ({EXIF_WHERE})", True
        where = "the container's"
        if found.stated:
            where = "stated in the files"
        elif level is not None:
            where = "white_level"
        text += f", white is {found.white:.10g} ({where})"
        if found.high > found.white:
            text += f"; higher values are clipped: is white_level={proposed} meant?"
        elif level is None and not found.stated and found.high * 2 < found.white == 65535:
            text += f"; if they hold fewer bits, set white_level={proposed} ({EXIF_WHERE})"
        elif level is not None and not found.stated and found.high < found.white * DARK:
            text += f"; nearly black: is white_level={proposed} meant?"
        return text, False


def turned_pictures(dataset: Any) -> str:
    """One line on pictures that EXIF turns otherwise than their labels; "" if there are none.

    Only headers are read; of large sets of `SCANNED` pictures, evenly spread.
    """
    count, turned = len(dataset), Turned()
    step = max(1, -(-count // SCANNED))
    for index in range(0, count, step):
        turned.add(dataset, index)
    if turned.apart == turned.fits_turned:
        return ""
    of = f" of {-(-count // step)} that were looked at" if step > 1 else ""
    reading = reading_of(dataset)
    return turned.sentence(reading, of) if reading.turns else ""


def warn_of_turned(*datasets: Any) -> None:
    """Logs the line of the first data set that has one."""
    for dataset in datasets:
        if said := turned_pictures(dataset):
            logger.warning("%s %s: %s", dataset.name, getattr(dataset, "split", ""), said)
            return
