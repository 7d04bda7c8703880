"""`fapn-zoo predict`: many files, folders and URLs -> an overlay, a label image and one summary."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from torch import nn

from fapn_zoo.data.images import list_images
from fapn_zoo.predict.predict import predict_each
from fapn_zoo.predict.run import device_and_type
from fapn_zoo.runtime.files import json_text, make_folder, write_whole
from fapn_zoo.runtime.precision import resolve_amp
from fapn_zoo.runtime.progress import bar
from fapn_zoo.tasks import task_for
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
    overlap: float = 0.25,
    batch_size: int = 1,
    amp: str = "auto",
) -> dict[str, Any]:
    """Predicts on files and writes `NAME_overlay.png`, `NAME_labels.png` and `summary.json` to `out_dir`.

    Args:
        model, task, tile, overlap, batch_size, amp: see `fapn_zoo.predict.predict`.
        paths: image files, folders of images (not searched deeper) and http(s) URLs, mixed; each is done once.
        out_dir: made if missing; results of an earlier run there are replaced, inputs never. progress: show a bar.

    Returns:
        What `summary.json` holds: `model`, `task`, `tile`, `amp`, `complete` (False after an error, Ctrl-C or SIGTERM),
        `seconds`, `images` (of each `input`, `overlay`, `labels`, `size` [H, W], `seconds`, `classes`
        name -> share of the image, and for panoptic and instance `segments`) and `failed` (`input` and `error`
        of images that cannot be read; stderr names them too, the rest is still done). Files appear whole or not at all.

    Raises:
        ImageError: for a folder without images, before anything is done. OSError: `out_dir` cannot be made.
        ValueError: no paths, what `predict` refuses (`NotFinite` too), or `out_dir` is one of the folders to read.
    """
    task, amp, out_dir = task_for(model.spec, task).name, resolve_amp(amp, *device_and_type(model)), Path(out_dir)
    inputs = expand_paths(paths, out_dir)
    stems = output_stems(inputs, out_dir)
    summary = {"model": model.spec.name, "task": task, "tile": tile, "amp": amp, "complete": False, "seconds": 0.0}
    summary |= {"images": [], "failed": []}
    started = before = time.perf_counter()

    def on_error(index: int, error: Exception) -> None:
        nonlocal before
        before = time.perf_counter()
        summary["failed"].append({"input": str(inputs[index]), "error": str(error)})
        shown.write(f"error: {error}", file=sys.stderr)
        shown.update()

    stream = predict_each(model, inputs, task, tile, overlap=overlap, batch_size=batch_size, amp=amp, on_error=on_error)
    make_folder(out_dir)
    try:
        with bar(progress, total=len(inputs), unit="image") as shown:
            for index, result in stream:
                entry = {"input": str(inputs[index]), **_write_pictures(result, out_dir, stems[index])}
                summary["images"].append(entry | {"seconds": round(time.perf_counter() - before, 4)})
                before = time.perf_counter()
                shown.update()
        summary["complete"] = True
    finally:
        summary["seconds"] = round(time.perf_counter() - started, 4)
        text = json_text(summary, out_dir / SUMMARY, indent=2, ensure_ascii=False) + "\n"
        # A file name that is no valid text becomes a JSON escape, which reads back as the same name.
        write_whole(out_dir / SUMMARY, lambda file: file.write(text.encode(errors="backslashreplace")))
    return summary


def expand_paths(paths: str | Path | Iterable[str | Path], out_dir: Path) -> list[str | Path]:
    """Files and URLs in the order given, folders replaced by their images, repeats left out.

    Raises as `predict_files` says.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise ValueError("no images to predict on: the list of paths is empty")
    found: dict[str, str | Path] = {}
    for path in paths:
        if _is_url(path):
            found.setdefault(str(path), path)
            continue
        path = Path(path)
        if path.is_dir() and path.resolve() == out_dir.resolve():
            raise ValueError(f"the output folder {out_dir} is also an input; results would be read as images next time")
        for file in list_images(path) if path.is_dir() else [path]:
            found.setdefault(str(file.resolve()), file)
    return list(found.values())


def output_stems(inputs: Sequence[str | Path], out_dir: Path) -> list[str]:
    """One name per input, so that NAME_overlay.png and NAME_labels.png in `out_dir` are new for each of them.

    The plain name if it is free, else with the folder's name in front (b_x), else with a number behind (x_2).
    Names are compared without case, as some file systems do, and an output never falls on an input.
    """
    taken = {str(Path(path).resolve()).casefold() for path in inputs if not _is_url(path)}
    stems = []
    for path in inputs:
        file = Path(unquote(urlsplit(str(path)).path) if _is_url(path) else path)
        stem = file.stem or "image"
        parent = file.resolve().parent.name
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        for candidate in itertools.chain([stem, f"{parent}_{stem}" if parent else stem], numbered):
            files = {str((out_dir / name).resolve()).casefold() for name in _file_names(candidate)}
            if not files & taken:
                break
        taken |= files
        stems.append(candidate)
    return stems


def _is_url(path: str | Path) -> bool:
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def _file_names(stem: str) -> tuple[str, str]:
    return f"{stem}_overlay.png", f"{stem}_labels.png"


def _write_pictures(result: Result, out_dir: Path, stem: str) -> dict[str, Any]:
    overlay, labels = _file_names(stem)
    save_image(result.overlay(), out_dir / overlay)
    save_image(result.label_image(), out_dir / labels)
    facts = result.to_dict()
    kept = ("size", "classes") if result.segment_map is None else ("size", "classes", "segments")
    return {"overlay": overlay, "labels": labels, **{key: facts[key] for key in kept}}
