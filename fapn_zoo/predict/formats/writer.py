"""What all formats share: a folder that appears whole, with the pictures, and what was found on them as polygons."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.decoding import header
from fapn_zoo.data.mask_decoding import crop_of
from fapn_zoo.data.mask_encoding import outline
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.runtime.files import check_writable, make_folder, new_folder, remove_folder, write_json, write_text
from fapn_zoo.tasks.coco import WORDS, is_url, segment_masks
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.tasks.result import Result
from fapn_zoo.zoo.spec import DataSpec

SPLIT = "train"  # that the pictures are in: what goes on from there trains
README = "README.md"


class FolderWriter(ABC):
    """A data set of pictures and results, in place of one of an earlier run; nothing is there before `write`.

    A picture is copied, unless it is no file, or has an EXIF orientation that `reading` leaves out: then it is stored
    as it was seen, a PNG of 8-bit RGB.

    Args:
        place: the folder to be. inputs: files and URLs. stems: names for them, each another.
        reading: how the pictures are read.

    Raises:
        ValueError: there is a folder already, of something else. OSError: nothing can be written there.
    """

    tasks = frozenset({"panoptic", "instance", "detection"})  # whose results have a place in it
    pictures = f"images/{SPLIT}"  # where they lie
    more: Mapping[str, Any] = {}  # of classes.json

    def __init__(self, place: Path, inputs: Sequence[str | Path], stems: Sequence[str], reading: Reading) -> None:
        check_writable(place / README)
        if place.is_dir() and any(place.iterdir()) and not _is_ours(place):
            raise ValueError(f"{place} is not of an earlier run, so it is not replaced; take another folder")
        self.place, self._inputs, self._stems, self._reading = place, inputs, stems, reading
        self._open = contextlib.ExitStack()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where files are written until all are there."""
        if self._folder is None:
            make_folder(self.place.parent)
            self._folder = self._open.enter_context(new_folder(self.place))
        return self._folder

    def target(self, index: int) -> Path:
        """The picture of input `index` in the folder."""
        path = Path(self._inputs[index])
        return self.folder / self.pictures / f"{self._stems[index]}{path.suffix if self._keeps(index) else '.png'}"

    def _keeps(self, index: int) -> bool:
        path = self._inputs[index]
        return not is_url(path) and Path(path).is_file() and (self._reading.turns or header(Path(path))[1] == 1)

    def add(self, index: int, result: Result) -> None:
        """The result of input `index`."""
        target = self.target(index)
        make_folder(target.parent)
        if self._keeps(index):
            shutil.copyfile(self._inputs[index], target)
        else:
            save_image(Image.fromarray(result.image), target)
        self._add(index, target, result)

    def write(self, model: str, data: DataSpec) -> None:
        """Ends the data set; `data` are classes and colours of the model of this name."""
        write_text(self.folder / README, f"{self._end(model, data)}{WORDS} {model}\n")
        known = {"names": list(data.labels), "palette": [list(colour) for colour in data.palette], **self.more}
        known |= {"things": list(data.things)} if data.things else {}
        if not 0 < data.ignore_index < len(data.labels):  # else it is the model's, which was never told another
            known["ignore_index"] = data.ignore_index
        known |= {"exif": "ignore"} if not self._reading.turns else {}
        known |= {"white_level": self._reading.white_level} if self._reading.white_level else {}
        write_json(self.folder / "classes.json", known)
        if self.place.is_dir():
            remove_folder(self.place)
        os.rename(self.folder, self.place)

    def close(self) -> None:
        """Removes what is not ended."""
        self._open.close()

    @abstractmethod
    def _add(self, index: int, picture: Path, result: Result) -> None:
        """Writes the objects of input `index`, whose picture is there."""

    def _end(self, model: str, data: DataSpec) -> str:
        """Writes what is of no single picture; returns what the readme begins with."""
        return ""


def found(result: Result) -> Iterator[tuple[dict[str, Any], Sequence[float], np.ndarray | None]]:
    """Of every segment its dict, its box x1, y1, x2, y2, and its outline (P, 2) x, y in pixels, None without masks.

    A mask without a pixel is no object in these formats.
    """
    masks = segment_masks(result)
    for m, segment in enumerate(result.segments):
        x, y, width, height = segment["bbox"]
        box = [x, y, x + width, y + height] if result.boxes is None else result.boxes[m].astype(np.float64).tolist()
        if masks is None:
            yield segment, box, None
        elif masks[m].area:
            crop = crop_of(masks[m].counts, masks[m].size)
            yield segment, box, outline(crop.pixels) + [crop.x, crop.y]


def _is_ours(place: Path) -> bool:
    try:
        return any(line.startswith(WORDS) for line in (place / README).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return False
