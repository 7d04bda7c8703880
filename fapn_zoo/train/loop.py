"""The training loop: from settings to a folder of weights, on one process or many, exactly resumable."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from fapn_zoo.evaluate import check_classes, evaluate
from fapn_zoo.runtime.files import write_text
from fapn_zoo.runtime.precision import resolve_amp
from fapn_zoo.runtime.processes import on_cpu
from fapn_zoo.train.checkpoint import claim_folder, load_checkpoint, save_checkpoint, starting_point
from fapn_zoo.train.optim import Ema, build_optimizer, learning_rate_factor, param_groups, set_learning_rate
from fapn_zoo.train.process import Interrupted, ahead, on_main, stop_signals
from fapn_zoo.train.run_log import RunLog, rows_before
from fapn_zoo.train.settings import FREE_ON_RESUME, Settings
from fapn_zoo.train.setup import SemanticTask, build_task, build_transform, train_mode
from fapn_zoo.weights.card_facts import METRICS

logger = logging.getLogger(__name__)
SCORES = ("miou", "pixel_acc", "mean_acc", "fwiou")


def train(settings: Settings) -> Path:
    """Trains by the settings and returns OUT/model, a weights folder that `create_model("local-dir:...")` reads.

    Every batch, augmentation and dropout mask depends only on the seed and the step, so a run that was killed and
    resumed ends with the same bits as one that was not. The loss of a step is normalised by the count of the whole
    batch over all processes and micro-batches, so how the batch is spread changes no gradient (batch norm aside).

    Raises:
        ValueError, FileNotFoundError: bad settings, data or OUT folder; a loss that is not finite (names the step).
        Interrupted: after SIGINT or SIGTERM, once the checkpoint is written.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    device = torch.device("cpu" if on_cpu() or not torch.cuda.is_available() else "cuda")
    amp = resolve_amp(settings.amp, device, training=True)
    accelerator = Accelerator(mixed_precision=amp, cpu=on_cpu())
    resumed = on_main(accelerator, lambda: starting_point(settings))
    torch.manual_seed(settings.seed)
    run = Run(settings, accelerator)
    on_main(accelerator, lambda: claim_folder(settings, resumed))  # only now is it sure that there is a run
    if resumed is not None:
        run.load(resumed)
    with stop_signals() as stop:
        _loop(run, stop)
    run.save()
    folder = run.finish()
    accelerator.wait_for_everyone()
    return folder


def _loop(run: Run, stop: list[int]) -> None:
    s = run.settings
    started, log = run.step, RunLog(run.out, s, run.step, run.main)
    batches = _batches(run)
    with contextlib.closing(batches), log:
        train_mode(run.model)
        while run.step < s.steps:
            clock = time.perf_counter()
            _, images, labels = next(batches)
            waited = time.perf_counter() - clock
            losses, stopping = run.update(images, labels, bool(stop))
            run.step += 1
            log.add(run.step, losses, waited)
            last = run.step == s.steps
            if s.eval_every and run.step % s.eval_every == 0 and not last:
                run.evaluate()
                log.restart_clock()
            if stopping or (s.checkpoint_every and run.step % s.checkpoint_every == 0 and not last):
                run.save()
                log.restart_clock()
            if stopping and not last:
                raise Interrupted(f"stopped after step {run.step} of {s.steps}; continue with resume=auto")
    if run.step == started and run.main:
        logger.info("nothing left to train: step %d of %d", run.step, s.steps)


class Run:
    """The state of a run: model, optimizer, averaged weights and the number of finished steps."""

    def __init__(self, settings: Settings, accelerator: Accelerator) -> None:
        from fapn_zoo.data.sources import open_dataset

        if not settings.data:
            raise ValueError("data= is missing: a folder, scenes:N, or several joined with ','")
        self.settings, self.accelerator = settings, accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.main = accelerator.is_main_process
        self.out = Path(settings.out)
        if settings.batch_size % self.world:
            raise ValueError(f"batch_size={settings.batch_size} cannot be shared by {self.world} processes")
        self.local_batch = settings.batch_size // self.world
        self.dataset = open_dataset(settings.data, settings.train_split, num_classes=settings.num_classes)
        self.val = _validation_set(settings, self.dataset)
        self.task: SemanticTask = build_task(settings, self.dataset.labels)
        if self.val is not None:
            check_classes(self.task.model, self.val)  # now, not after a day of training
        self.plain = self.task.model.to(accelerator.device)  # the module itself, under DDP and compile
        if settings.channels_last:
            self.plain = self.plain.to(memory_format=torch.channels_last)
        s = settings
        groups = param_groups(self.plain, s.lr, s.weight_decay, s.backbone_lr_mult, s.decay_bias)
        model = torch.compile(self.plain) if settings.compile else self.plain
        self.model, self.optimizer = accelerator.prepare(model, build_optimizer(groups, s.optimizer, s.momentum))
        self.trainable = [p for p in self.plain.parameters() if p.requires_grad]
        self.ema = Ema(self.plain, settings.ema) if settings.ema else None
        self.step = 0

    def update(self, images: Tensor, labels: Tensor, stop: bool) -> tuple[dict[str, float], bool]:
        """One optimizer step on this process's share of the batch; returns the global losses and whether to stop."""
        s, acc = self.settings, self.accelerator
        torch.manual_seed(step_seed(s.seed, self.step, self.rank))  # dropout needs no saved generator state
        images, targets = self.task.inputs(images, labels, acc.device)
        size = min(s.micro_batch or self.local_batch, self.local_batch)
        parts = [
            (images[i : i + size], {k: v[i : i + size] for k, v in targets.items()})
            for i in range(0, self.local_batch, size)
        ]
        normalizer = self._sum(sum(self.task.count(t) for _, t in parts))
        totals: dict[str, Tensor] = {}
        for i, (x, t) in enumerate(parts):
            waiting = acc.no_sync(self.model) if i < len(parts) - 1 else contextlib.nullcontext()
            with waiting:
                losses = self._losses(x, t, normalizer)
                acc.backward(losses["loss"] * self.world)  # DDP averages over processes; the loss is already a share
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach().double()
        flags = self._sum(torch.stack([*totals.values(), torch.tensor(float(stop), device=acc.device).double()]))
        values = flags.tolist()
        result = dict(zip(totals, values[:-1], strict=True))
        if not all(np.isfinite(v) for v in result.values()):
            raise ValueError(f"step {self.step}: the loss is not finite: {result}")
        if s.clip_norm:
            acc.clip_grad_norm_(self.trainable, s.clip_norm)
        factor = learning_rate_factor(self.step, s.steps, s.poly_power, s.warmup_steps)
        result["lr"] = set_learning_rate(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.plain)
        return result, values[-1] > 0

    def _losses(self, images: Tensor, targets: dict[str, Tensor], normalizer: Tensor) -> dict[str, Tensor]:
        try:
            return self.task.losses(self.model, images, targets, normalizer)
        except ValueError as error:  # the matcher's, when training has diverged
            raise ValueError(f"step {self.step}: {error}") from error

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in the tensor's own dtype."""
        if self.world > 1:
            tensor = tensor.to(self.accelerator.device, copy=True)
            dist.all_reduce(tensor)
        return tensor

    def save(self) -> None:
        """Writes a checkpoint of the finished steps (main process only; the others wait)."""
        if self.main:
            scaler = getattr(self.accelerator, "scaler", None)
            state = {
                "model": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "processes": self.world,
            }
            save_checkpoint(self.out / "checkpoint", self.step, state)
        self.accelerator.wait_for_everyone()

    def load(self, path: Path) -> None:
        """Continues from a checkpoint folder."""
        state = load_checkpoint(path)
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if state["scaler"] is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        if self.main:
            logger.info("continuing from step %d (%s)", self.step, path)
            if state["processes"] != self.world:
                logger.warning("was run by %d processes, now %d: equal up to rounding", state["processes"], self.world)

    def evaluate(self, final: bool = False) -> dict[str, Any] | None:
        """Scores the present (averaged) weights on the validation set; a row of metrics.csv, or None without data."""
        if self.val is None:
            return None
        s = self.settings
        with self.ema.applied(self.plain) if self.ema else contextlib.nullcontext():
            report = evaluate(
                self.plain,
                self.val,
                split=s.val_split,
                limit=None if final else s.eval_limit or None,
                amp=self.accelerator.mixed_precision,
                progress=self.main,
                seed=s.seed,
                weights=str(self.out / "model") if final else f"step {self.step}",
            )
        if self.main:
            rows = rows_before(self.out / "metrics.csv", self.step)
            rows.append(",".join([str(self.step), *("" if report[n] is None else f"{report[n]:.6f}" for n in SCORES)]))
            write_text(self.out / "metrics.csv", "\n".join([",".join(["step", *SCORES]), *rows]) + "\n")
            told = ", ".join(f"{METRICS[n][0]} {100 * report[n]:.2f}" for n in SCORES if report[n] is not None)
            logger.info("step %d: %s", self.step, told)
        return report

    def _told(self) -> dict[str, Any]:
        """The settings as they travel with the weights: without folders of this machine and what changes no weight."""
        told = {k: v for k, v in self.settings.to_dict().items() if k not in FREE_ON_RESUME and v is not None}
        told.pop("checkpoint_path", None)
        started_from = self.settings.model if self.settings.model.startswith("hf-hub:") else self.plain.spec.name
        return told | {"model": started_from, "data": self.dataset.name}

    def finish(self) -> Path:
        """Evaluates, and writes OUT/model and OUT/eval.json."""
        from fapn_zoo.weights.folder import save_model

        folder = self.out / "model"
        report = self.evaluate(final=True)
        if self.main:
            metrics = (
                {
                    f"{report['data']} {report['split']} {METRICS[n][0]}": round(100 * report[n], 2)
                    for n in SCORES
                    if report[n] is not None
                }
                if report
                else {}
            )
            with self.ema.applied(self.plain) if self.ema else contextlib.nullcontext():
                save_model(self.plain, folder, metrics=metrics, training=self._told())
            if report:
                write_text(self.out / "eval.json", json.dumps(report, indent=1) + "\n")
        return folder


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63 bit seed that depends on all three and on nothing else."""
    high, low = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32).tolist()
    return (high << 31) | (low >> 1)


def _batches(run: Run) -> Iterator[tuple[int, Tensor, Tensor]]:
    """This process's share of the batches from the run's step on: (step, images, labels)."""
    from fapn_zoo.data.loader import train_batches

    s = run.settings
    batches = train_batches(
        run.dataset,
        build_transform(s, run.task.data),
        batch_size=s.batch_size,
        seed=s.seed,
        start_step=run.step,
        total_steps=s.steps,
        rank=run.rank,
        world_size=run.world,
        workers=s.workers,
        cache=s.cache,
        pin_memory=run.accelerator.device.type == "cuda",
    )
    return batches if s.workers else ahead(batches)


def _validation_set(settings: Settings, dataset: Any) -> Any:
    from fapn_zoo.data.sources import open_dataset

    if settings.val_data == "none":
        return None
    if settings.val_data:
        return open_dataset(settings.val_data, settings.val_split, num_classes=settings.num_classes)
    try:
        return open_dataset(settings.data, settings.val_split, num_classes=settings.num_classes)
    except FileNotFoundError as error:
        logger.warning("no evaluation: %s", error)
        return None
