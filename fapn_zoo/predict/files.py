"""`fapn-zoo predict`: many files, folders and URLs -> an overlay, a label image and one summary."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from torch import nn

from fapn_zoo.data.images import folder_images
from fapn_zoo.data.listing import Unused, told
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.predict.formats import writers_for
from fapn_zoo.predict.formats.writer import FolderWriter
from fapn_zoo.predict.predict import named, predict_each
from fapn_zoo.predict.run import device_and_type
from fapn_zoo.runtime.device import resolve_amp
from fapn_zoo.runtime.files import json_text, make_folder, short_name, write_whole
from fapn_zoo.runtime.progress import bar
from fapn_zoo.tasks import task_for
from fapn_zoo.tasks.coco import CocoFile, is_url
from fapn_zoo.tasks.drawing import save_image
from fapn_zoo.tasks.result import Result

SUMMARY = "summary.json"


def predict_files(
    model: nn.Module,
    paths: str | Path | Iterable[str | Path],
    out_dir: str | Path,
    task: str | None = None,
    tile: int | tuple[int, int] | None = None,
    progress: bool = True,
    *,
    coco: str | Path | None = None,
    formats: Sequence[str] = (),
    batch_size: int = 1,
    amp: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Predicts on files and writes `NAME_overlay.png`, `NAME_labels.png` and `summary.json` to `out_dir`.

    Args:
        model, task, tile, batch_size, amp, and options (overlap, white_level, exif): see `fapn_zoo.predict.predict`.
        paths: image files, folders of images (not searched deeper) and http(s) URLs, mixed; each path is done once.
        out_dir: made if missing; results of an earlier run there are replaced, inputs never. progress: show a bar.
        coco: a .json file for all objects in COCO's form, see `fapn_zoo.tasks.coco.CocoFile`; of panoptic results also
            a folder of its name beside it, with a PNG file per image.
        formats: names of `predict.formats.FORMATS`, of each of which a folder in `out_dir` becomes a data set.

    Returns:
        What `summary.json` holds: `model`, `task`, `tile`, `amp`, `complete` (False after an error, Ctrl-C or SIGTERM),
        `seconds`, `images` (of each `input`, `overlay`, `size` [H, W], `seconds`; `segments` and `counts` of objects by
        name, not of semantic; `labels` and `classes`, name -> share of the image, not of detection), `failed` (`input`
        and `error` of what cannot be read) and `skipped` (`input` and `reason` of what else lies in the folders).

    Raises:
        ImageError: for a folder without images, before anything is done. OSError: `out_dir` cannot be made.
        ValueError: no paths, what `predict` refuses (`NotFinite` too), or `out_dir` is one of the folders to read.
    """
    task, amp, out_dir = task_for(model.spec, task).name, resolve_amp(amp, *device_and_type(model)), Path(out_dir)
    inputs, skipped = expand_paths(paths, out_dir)
    stems = output_stems(inputs, out_dir)
    rules = Reading.of_model(named(model), options.get("white_level"), options.get("exif"))
    writers: list[Any] = writers_for(formats, task, named(model).labels, out_dir, inputs, stems, rules)
    writers += [CocoFile(coco, inputs, stems, out_dir)] if coco is not None else []
    summary = {"model": model.spec.name, "task": task, "tile": tile, "amp": amp, "complete": False, "seconds": 0.0}
    summary |= {"images": [], "failed": [], "skipped": _told(skipped)}
    run = _Run(inputs, stems, out_dir, writers, summary)
    options |= {"batch_size": batch_size, "amp": amp, "on_error": run.failed}
    stream = predict_each(model, inputs, task, tile, **options)
    make_folder(out_dir)
    started = run.before = time.perf_counter()
    try:
        with bar(progress, total=len(inputs), unit="image") as run.shown:
            for index, result in stream:
                run.done(index, result)
        for writer in writers:
            writer.write(model.spec.name, named(model))
        summary["complete"] = True
    finally:
        for writer in writers:
            writer.close()
        _write_summary(summary, out_dir / SUMMARY, started)
    return summary


@dataclass
class _Run:
    """What becomes of the images one by one: files of results, and entries of the summary."""

    inputs: list[str | Path]
    stems: list[str]
    out_dir: Path
    writers: Sequence[CocoFile | FolderWriter]
    summary: dict[str, Any]
    shown: Any = None  # the bar
    before: float = 0.0  # when the image before was done

    def done(self, index: int, result: Result) -> None:
        entry = {"input": str(self.inputs[index]), **_write_pictures(result, self.out_dir, self.stems[index])}
        for writer in self.writers:
            writer.add(index, result)
        self.summary["images"].append(entry | {"seconds": round(time.perf_counter() - self.before, 4)})
        self._next()

    def failed(self, index: int, error: Exception) -> None:
        self.summary["failed"].append({"input": str(self.inputs[index]), "error": str(error)})
        self.shown.write(f"error: {error}", file=sys.stderr)
        self._next()

    def _next(self) -> None:
        self.before = time.perf_counter()
        self.shown.update()


def _write_summary(summary: dict[str, Any], path: Path, started: float) -> None:
    summary["seconds"] = round(time.perf_counter() - started, 4)
    text = json_text(summary, path, indent=2, ensure_ascii=False) + "\n"
    # A file name that is no valid text becomes a JSON escape, which reads back as the same name.
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def expand_paths(paths: str | Path | Iterable[str | Path], out_dir: Path) -> tuple[list[str | Path], list[Unused]]:
    """Files and URLs in the order given, folders replaced by their images, repeats left out; and what is not read.

    A link is an input of its own, one to nowhere too, whose error is told like that of any other file.

    Raises as `predict_files` says.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("no images to predict on: the list of paths is empty")
    found: dict[str, str | Path] = {}
    skipped: dict[str, Unused] = {}
    for path in paths:
        if is_url(path):
            found.setdefault(str(path), path)
            continue
        path, files = Path(path), [Path(path)]
        if path.is_dir():
            if path.resolve() == out_dir.resolve():
                what = f"the output folder {out_dir} is also an input"
                raise ValueError(f"{what}; results would be read as images next time")
            files, unused = folder_images(path, leave_out=out_dir)
            skipped |= {_place(one.path): one for one in unused}
        for file in files:
            found.setdefault(_place(file), file)
    given = {_place(Path(path)) for path in paths if not is_url(path)}  # a subfolder that is given too is read
    return list(found.values()), [one for place, one in skipped.items() if place not in given | found.keys()]


def _told(skipped: Sequence[Unused]) -> list[dict[str, str]]:
    """What the summary says of things that are not read; stderr gets a line about them."""
    if skipped:
        print(f"skipped: {told(skipped)}", file=sys.stderr)
    return [{"input": str(one.path), "reason": one.reason.removeprefix(f"{one.path}: ")} for one in skipped]


def _place(path: Path) -> str:
    """Equal for one path written in two ways; a link is not what it leads to."""
    return os.path.join(os.path.realpath(path.parent), path.name) if ".." in path.parts else os.path.abspath(path)


def output_stems(inputs: Sequence[str | Path], out_dir: Path) -> list[str]:
    """One name per input, so that NAME_overlay.png and NAME_labels.png in `out_dir` are new for each of them.

    The plain name if it is free, else with the folder's name in front (b_x), else with a number behind (x_2).
    Names are compared without case, as some file systems do, and an output never falls on an input. Names that would
    be too long for a file are cut; they are one line of text without space around it, as lists of files need.
    """
    files = [Path(path) for path in inputs if not is_url(path)]
    real, own = map(os.path.realpath, files), (os.path.join(os.path.realpath(f.parent), f.name) for f in files)
    taken = {path.casefold() for path in (*real, *own)}
    stems = []
    for path in inputs:
        file = Path(unquote(urlsplit(str(path)).path) if is_url(path) else path)
        line = " ".join(os.fsencode(file.stem).decode(errors="replace").splitlines()).strip()
        stem = short_name(line) or "image"
        parent = os.path.basename(os.path.dirname(os.path.abspath(file)))
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        for candidate in itertools.chain([stem, short_name(f"{parent}_{stem}") if parent else stem], numbered):
            files = {str((out_dir / name).resolve()).casefold() for name in _file_names(candidate)}
            if not files & taken:
                break
        taken |= files
        stems.append(candidate)
    return stems


def _file_names(stem: str) -> tuple[str, str]:
    return f"{stem}_overlay.png", f"{stem}_labels.png"


def _write_pictures(result: Result, out_dir: Path, stem: str) -> dict[str, Any]:
    overlay, labels = _file_names(stem)
    save_image(result.overlay(), out_dir / overlay)
    facts = result.to_dict()
    objects = ("counts", "segments") if result.has_objects else ()
    if result.labels is None:
        return {"overlay": overlay, **{key: facts[key] for key in ("size", *objects)}}
    save_image(result.label_image(), out_dir / labels)
    return {"overlay": overlay, "labels": labels, **{key: facts[key] for key in ("size", "classes", *objects)}}
