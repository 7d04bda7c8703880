"""The training loop: from settings to a folder of weights, on one process or many, exactly resumable."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from fapn_zoo.data.cache import CachedDataset
from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.evaluate.measure import ahead
from fapn_zoo.runtime.device import resolve_amp
from fapn_zoo.runtime.files import NO_ROOM
from fapn_zoo.runtime.processes import leave_at_exit, on_cpu
from fapn_zoo.runtime.signals import stop_signals
from fapn_zoo.train.folder import begin, claim_folder
from fapn_zoo.train.log import RunLog
from fapn_zoo.train.memory import largest_micro_batch
from fapn_zoo.train.run import Run, on_main
from fapn_zoo.train.settings import Settings
from fapn_zoo.train.setup import prepare, train_mode
from fapn_zoo.train.watching import check_tracker, start_tracker
from fapn_zoo.visualize.plots import require_matplotlib

logger = logging.getLogger(__name__)


def train(settings: Settings) -> Path:
    """Trains by the settings and returns OUT/model, a weights folder that `create_model("local-dir:...")` reads.

    Every batch, augmentation and dropout mask depends only on the seed and the step, so a run that was killed and
    resumed ends with the same bits as one that was not. The loss of a step is normalised by the count of the whole
    batch over all processes and micro-batches, so how the batch is spread changes no gradient (batch norm aside).

    Raises:
        ValueError, FileNotFoundError: bad settings, data or OUT folder; a loss that is not finite (names the step).
        OSError: a file cannot be written; where there is no room, what the file needs and how to go on.
        Interrupted: after SIGINT or SIGTERM, once the checkpoint is written. An evaluation that it breaks off is made
            anew by the run that goes on.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    device = torch.device("cpu" if on_cpu() or not torch.cuda.is_available() else "cuda")
    amp = resolve_amp(settings.amp, device, training=True)
    check_tracker(settings.log_with)
    if settings.eval_pictures:
        require_matplotlib()  # now, not at the first evaluation
    watched = {"log_with": settings.log_with, "project_dir": settings.out} if settings.log_with else {}
    accelerator = Accelerator(mixed_precision=amp, cpu=on_cpu(), **watched)
    leave_at_exit()
    with contextlib.ExitStack() as claim:  # OUT is this run's until it ends, and until `begin` it is left as it is
        resumed = on_main(accelerator, lambda: claim.enter_context(claim_folder(settings)))
        return _run(settings, accelerator, resumed)


def _run(settings: Settings, accelerator: Accelerator, resumed: Path | None) -> Path:
    torch.manual_seed(settings.seed)
    if settings.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size={settings.batch_size} cannot be shared by {accelerator.num_processes} processes")
    run = Run(settings, prepare(settings), accelerator)
    try:
        on_main(accelerator, lambda: begin(settings, resumed, run.parts, run.checkpoints))
        if resumed is not None:
            run.load(resumed)
        if settings.micro_batch == "auto" and not run.micro_batch:  # a run that goes on spreads batches as it did
            run.micro_batch = largest_micro_batch(run)
        if settings.log_with:
            start_tracker(accelerator, settings)
        with stop_signals() as run.stop:
            _loop(run)
            run.save()
            folder = run.finish()
            accelerator.wait_for_everyone()
        accelerator.end_training()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        kept = "nothing of the run is kept" if (step := run.checkpoints.saved) is None else f"step {step} is kept"
        cure = "raise the limit" if error.errno == errno.EFBIG else "free space"
        raise OSError(f"{error}; {kept}: {cure} and go on with resume=auto") from error
    return folder


def _loop(run: Run) -> None:
    s, parts = run.settings, run.parts
    started = run.step
    dataset = CachedDataset(parts.dataset, parts.transform.needs) if s.cache else parts.dataset
    stream = StepBatches(dataset, parts.transform, s.batch_size, s.seed, run.step, s.steps, run.rank, run.world)
    batches = train_batches(stream, parts.collate, s.workers, run.accelerator.device.type == "cuda")
    if not s.workers:
        batches = in_background(batches)
    log = RunLog(run.out, s, run.step, run.main, run.logged, run.accelerator.log if s.log_with else None)
    with contextlib.closing(batches), contextlib.closing(log):
        if run.lacks_scores():
            run.evaluate()
        train_mode(run.model)
        over = run.out_of_patience()
        while run.step < run.ending.last and not over:
            clock = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - clock
            losses, stopping = run.update(batch, bool(run.stop))
            run.step += 1
            log.add(run.step, losses, waited, run.step == run.ending.last)
            if run.step == run.ending.last:
                break
            scored = bool(s.eval_every) and run.step % s.eval_every == 0
            # Before an evaluation, which takes long and may say that this is the best: nothing is lost in it.
            due = s.checkpoint_every and (scored or run.step % s.checkpoint_every == 0)
            if stopping or due or run.ending.cooling[:1] == (run.step - 1,):  # the clock has decided
                run.save()
            if stopping:
                raise run.interrupted()
            if scored:
                run.evaluate()
                over = run.out_of_patience()
            log.leave_out()
    if run.step == started and run.main:
        logger.info("nothing left to train: step %d of %d", run.step, run.ending.last)


def in_background(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, made by a background thread that stays two ahead; an error comes out in its place."""
    end = object()
    with contextlib.closing(ahead(lambda _: next(items, end), itertools.repeat(None), threads=1)) as made:
        yield from itertools.takewhile(lambda item: item is not end, made)
