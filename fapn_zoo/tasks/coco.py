"""Results in COCO's forms: run lengths, json of objects, and PNG files of panoptic segments with their json.

A `result` is a `fapn_zoo.tasks.result.Result`. Class i is the category `category_ids[i]` of the data that the model was
trained on, or i + 1 where those are not known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.mask_encoding import RunLengths
from fapn_zoo.postprocess.answers import Masks
from fapn_zoo.runtime.files import check_writable, json_text, make_folder, read_json, write_whole
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.zoo.spec import DataSpec

WORDS = "predictions of"  # that a file of ours begins to describe itself with


def run_lengths(masks: Masks) -> list[RunLengths]:
    """Of every mask its run lengths; none is made as large as the image."""
    found = []
    for m in range(len(masks)):
        crop, (y, x) = masks.crop(m)
        found.append(RunLengths.of(crop.numpy(), y, x, masks.size))
    return found


def segment_masks(result: Any) -> list[RunLengths] | None:
    """The mask of every segment, read from the maps where they are no masks of their own; None for boxes alone."""
    if result.cropped is not None:
        return run_lengths(result.cropped)
    if result.labels is None:
        return None
    found = []
    for segment in result.segments:
        x, y, width, height = segment["bbox"]
        ids, value = result.segment_map, segment["id"]
        if ids is None:
            ids, value = result.labels, segment["category_id"]
        found.append(RunLengths.of(ids[y : y + height, x : x + width] == value, y, x, ids.shape))
    return found


def category_ids(data: DataSpec | Any) -> tuple[int, ...]:
    """COCO's id of every class."""
    names = data.labels if isinstance(data, DataSpec) else data.names
    return tuple(data.category_ids) or tuple(range(1, len(names) + 1))


def detections(result: Any, image_id: int | str) -> list[dict[str, Any]]:
    """See `Result.to_coco`."""
    masks, ids = segment_masks(result), category_ids(result)
    found = []
    for m, segment in enumerate(result.segments):
        bbox = segment["bbox"]
        if result.boxes is not None:
            x1, y1, x2, y2 = result.boxes[m].astype(np.float64).tolist()
            bbox = [x1, y1, x2 - x1, y2 - y1]
        entry = {"image_id": image_id, "category_id": ids[segment["category_id"]], "bbox": list(bbox)}
        if masks is not None:
            entry["segmentation"] = masks[m].to_coco()
        found.append(entry | {"score": segment["score"]})
    return found


def panoptic(result: Any) -> tuple[Image.Image, list[dict[str, Any]]]:
    """See `Result.to_coco_panoptic`."""
    if result.task != "panoptic":
        raise ValueError(f"a {result.task} result is no panoptic map; take task='panoptic', or to_coco()")
    ids, categories = result.segment_map, category_ids(result)
    if len(result.segments) >= 2**24:
        raise ValueError(f"{result.name} has {len(result.segments)} segments; a PNG file holds {2**24 - 1}")
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    kept = ("id", "area", "bbox", "score")
    segments = [
        {key: segment[key] for key in kept}
        | {"category_id": categories[segment["category_id"]], "isthing": int(segment["isthing"]), "iscrowd": 0}
        for segment in result.segments
    ]
    return Image.fromarray(pixels), segments


class CocoFile:
    """COCO json of many results, and of panoptic ones their PNG files in a folder of its name beside it.

    The json is written in the end and whole. Until then one of an earlier run is as it was, but for panoptic results:
    there it is removed before the first PNG file is replaced. The images' ids are the numbers that their files are
    called by, where all are called by different numbers, as COCO's are, else 1, 2, ...

    Args:
        file: ends in .json; one that is there already must be of an earlier run.
        inputs: files and URLs of all images; their names are those below the folder that all files have in common.
        stems: of the PNG files, different for each of them. out_dir: where other files are written.

    Raises:
        ValueError: another ending, a file of another kind, or a folder that holds images or other outputs. OSError:
            nothing can be written there.
    """

    def __init__(self, file: str | Path, inputs: Sequence[str | Path], stems: Sequence[str], out_dir: Path) -> None:
        self.file = Path(file)
        if self.file.suffix.lower() != ".json":
            raise ValueError(f"COCO's annotations cannot be written to {file}: the name must end in .json")
        check_writable(self.file)
        if self.file.exists() and not _is_ours(self.file):
            raise ValueError(f"{file} is not of an earlier run, so it is not replaced; take another name")
        self.folder, local = self.file.with_suffix(""), [Path(path) for path in inputs if not is_url(path)]
        if self.folder.resolve() in {out_dir.resolve(), *(path.parent.resolve() for path in local)}:
            raise ValueError(f"{file} would have its PNG files in {self.folder}, which has other files; rename it")
        self._names, self._stems = _file_names(inputs), stems
        numbers = [int(stem) for name in self._names if re.fullmatch(r"[0-9]{1,15}", stem := Path(name).stem)]
        self._ids = numbers if len(set(numbers)) == len(inputs) else range(1, len(inputs) + 1)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, index: int, result: Any) -> None:
        """The result of input `index`."""
        height, width = result.image.shape[:2]
        image_id = self._ids[index]
        self._images.append({"id": image_id, "file_name": self._names[index], "width": width, "height": height})
        if result.task == "panoptic":
            picture, segments = panoptic(result)
            self.file.unlink(missing_ok=True)
            make_folder(self.folder)
            name = f"{self._stems[index]}.png"
            save_image(picture, self.folder / name)
            self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
            return
        for entry, segment in zip(detections(result, image_id), result.segments, strict=True):
            own = {"id": len(self._annotations) + 1, "area": segment["area"], "iscrowd": 0}
            self._annotations.append(own | entry)

    def write(self, model: str, data: DataSpec) -> None:
        """Writes the json; `data` are classes, names and colours of the model of this name."""
        categories = [
            {"id": i, "name": name, "isthing": int(not data.things or k in data.things), "color": list(colour)}
            for k, (i, name, colour) in enumerate(zip(category_ids(data), data.labels, data.palette, strict=True))
        ]
        table = {"info": {"description": f"{WORDS} {model}"}, "images": self._images}
        table |= {"annotations": self._annotations, "categories": categories}
        make_folder(self.file.parent)
        text = json_text(table, self.file, indent=None) + "\n"
        write_whole(self.file, lambda file: file.write(text.encode(errors="backslashreplace")))

    def close(self) -> None:
        """Nothing is open; what was not written is not there."""


def is_url(path: str | Path) -> bool:
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def _is_ours(file: Path) -> bool:
    try:
        return read_json(file)["info"]["description"].startswith(WORDS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _file_names(inputs: Sequence[str | Path]) -> list[str]:
    """The path of every file below the folder that all files have in common; of a URL itself."""
    files = [os.path.abspath(path) for path in inputs if not is_url(path)]
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    names = iter(Path(os.path.relpath(file, root)).as_posix() for file in files)
    return [str(path) if is_url(path) else next(names) for path in inputs]
