"""Whose folder OUT is: where a run starts from, and what it may take away."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from fapn_zoo.data.fingerprint import Fingerprint
from fapn_zoo.runtime.claim import claimed
from fapn_zoo.runtime.files import read_json, remove_leavings, write_json
from fapn_zoo.train.checkpoint import Checkpoints, latest_checkpoint, listed
from fapn_zoo.train.replay import FILE
from fapn_zoo.train.settings import Settings
from fapn_zoo.train.setup import Parts
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights.folder import check_replaceable

logger = logging.getLogger(__name__)

SETTINGS, DATA, MODEL, CHECKPOINT = "settings.json", "data.json", "model", "checkpoint"
# What a run writes, checkpoints aside: nothing else is ever taken away, wherever it lies.
RUN_FILES = (
    *(f"{MODEL}/{name}" for name in (CONFIG, WEIGHTS, CARD)),
    *("log.jsonl", "metrics.csv", "eval.json", "evaluations", "progress.png", FILE, DATA, SETTINGS),
)
RESULTS = ("log.jsonl", "metrics.csv", "eval.json", CHECKPOINT, MODEL)  # what would be missed
OTHERWISE = "overwrite=true or another out="


@contextlib.contextmanager
def claim_folder(settings: Settings) -> Iterator[Path | None]:
    """Holds OUT against other trainings; the value is the checkpoint to continue from, None to start at step 0.

    Nothing in OUT is changed.

    Raises:
        ValueError: another training is writing there, or `starting_point` refuses. OSError: OUT cannot be written to.
    """
    with claimed(Path(settings.out), "training"):
        yield starting_point(settings)


def starting_point(settings: Settings) -> Path | None:
    """Which checkpoint in OUT to continue from; None starts at step 0. Changes nothing on disk.

    Raises:
        ValueError: OUT holds a run and neither resume=auto nor overwrite=true was given; or it is to be resumed with
            settings that would change the result, or without its checkpoint, though it has results; or what would be
            replaced is not a run's, or is what this run is to start from. The message says how to go on.
    """
    out = Path(settings.out)
    written = [path for path in _run_files(out) if path.is_dir() or path.stat().st_size]
    held = [name for name in RESULTS if any(path.relative_to(out).parts[0] == name for path in written)]
    check_replaceable(out / MODEL)
    if (out / CHECKPOINT).is_file():
        raise ValueError(f"{out / CHECKPOINT} is a file, where checkpoints are to be; move it or use another out=")
    _check_settings_file(out, settings, bool(held))
    if settings.overwrite:
        _check_origin(settings)
        return None
    if not held:
        return None
    listed = ", ".join(held)
    if settings.resume != "auto":
        raise ValueError(f"{out} holds a run ({listed}); use resume=auto, {OTHERWISE}")
    go_on = f"checkpoint_path={out / MODEL} out=NEW"
    save = f", or train on from its weights: {go_on}" if MODEL in held else ""
    if not (out / SETTINGS).is_file():
        raise ValueError(f"{out} cannot be resumed: it has no {SETTINGS}; use {OTHERWISE}{save}")
    saved, mine = read_json(out / SETTINGS), settings.to_dict()
    different = settings.differences(saved)
    if (out / DATA).is_file():  # then `begin` compares the data itself, and its folder may have another name
        different = [key for key in different if key != "data"]
    if different:
        pairs = ", ".join(f"{k} (was {saved.get(k)!r}, now {mine.get(k)!r})" for k in different)
        after = "" if MODEL in held else " once it is finished"
        hint = f"use the same, {OTHERWISE}, or{after} train on from its weights: {go_on}"
        raise ValueError(f"{out} was run with other settings: {pairs}; {hint}")
    start = latest_checkpoint(out / CHECKPOINT)
    if start is None and MODEL in held:
        hint = f"train on from its weights with {go_on}, or use {OTHERWISE}"
        raise ValueError(f"{out} holds a finished run ({MODEL}) but no checkpoint to go on from; it is kept: {hint}")
    if start is None and "eval.json" in held:
        raise ValueError(f"{out} holds results ({listed}) but no checkpoint to go on from; use {OTHERWISE}")
    if start is None:
        logger.warning("%s holds a run (%s) without checkpoint: starting at step 0", out, listed)
    return start


def _run_files(out: Path) -> list[Path]:
    """What a run has left; results before the checkpoints that they can be made of again."""
    found = [path for name in RUN_FILES if (path := out / name).exists()]
    model = [path for path in found if path.parent == out / MODEL]
    return [*model, *listed(out / CHECKPOINT), *found[len(model) :]]


def _check_settings_file(out: Path, settings: Settings, held: bool) -> None:
    """ValueError for a settings.json that is none of a run, or that cannot be read where it is needed."""
    file = out / SETTINGS
    if not file.exists():
        return
    try:
        saved = read_json(file)
    except (ValueError, OSError) as error:
        if held and settings.overwrite:
            return  # damaged, and a run lies beside it
        raise ValueError(f"{error}; put it right, or use another out=" + " or overwrite=true" * held) from None
    if not {"model", "data", "steps"} <= saved.keys():
        raise ValueError(f"{file} is not of a training run; move it or use another out=")


def _check_origin(settings: Settings) -> None:
    """ValueError where the run is to start from what overwrite=true would take away."""
    mine = [(Path(settings.out) / name).resolve() for name in (MODEL, CHECKPOINT)]
    scheme, _, source = settings.model.partition(":")
    given = {"checkpoint_path": settings.checkpoint_path, "model": source if scheme == "local-dir" else None}
    for name, value in given.items():
        if value and any(Path(value).resolve().is_relative_to(folder) for folder in mine):
            what = f"{name}={getattr(settings, name)} lies in out={settings.out}"
            raise ValueError(f"{what}, where overwrite=true would replace it; use another out=")


def begin(settings: Settings, start: Path | None, parts: Parts, checkpoints: Checkpoints) -> None:
    """Makes OUT this run's own: writes what it is run with and on, and with overwrite=true replaces an older run.

    Args:
        start: the checkpoint that it continues from.
        checkpoints: those in OUT.

    Raises:
        ValueError: the run that goes on had other data.
    """
    out = Path(settings.out)
    then = {} if start is None else _data_then(out)
    data = {"train": parts.dataset} | ({} if parts.val is None else {"val": parts.val})
    now = {name: Fingerprint.of(one, then[name].read if name in then else None) for name, one in data.items()}
    if "train" in then and (found := then["train"].differences(now["train"])):
        hint = f"give it the same data again, or use {OTHERWISE}"
        if then["train"].read != "all":
            hint += f"; if it is the same, remove {out / DATA}"
        raise ValueError(f"{out} was run on other data: {found}; {hint}")
    if "val" in then and "val" in now and (found := then["val"].differences(now["val"])):
        logger.warning("other validation data than before (%s): older rows of metrics.csv cannot be compared", found)
    if settings.overwrite and (old := _run_files(out)):
        _remove(out, old)
    for folder in (out, out / MODEL):  # what a killed run left may fill the disk
        remove_leavings(folder, alone=True)
    checkpoints.go_on(start)
    facts = {DATA: {name: one.to_dict() for name, one in now.items()}, SETTINGS: settings.to_dict()}
    for name, values in facts.items():
        write_json(out / name, values)


def _data_then(out: Path) -> dict[str, Fingerprint]:
    """What the run in OUT was trained ("train") and scored ("val") on, as far as that is known."""
    file = out / DATA
    if not file.is_file():
        logger.warning("%s has no %s: whether the data is still the same cannot be told", out, DATA)
        return {}
    try:
        held = read_json(file)
        return {
            name: Fingerprint.from_dict(held[name]) for name in ("train", "val") if held.get(name) or name == "train"
        }
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else "it does not describe a data set"
        raise ValueError(f"{file}: {reason}; without this file the run goes on with whatever data it has") from None


def _remove(out: Path, old: list[Path]) -> None:
    for path in old:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in (out / MODEL, out / CHECKPOINT):
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            folder.rmdir()
