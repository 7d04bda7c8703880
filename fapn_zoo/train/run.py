"""The state of a training run: its steps, checkpoints, evaluations and what it leaves behind."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fapn_zoo.evaluate import Stopped, evaluate
from fapn_zoo.runtime.files import write_json
from fapn_zoo.runtime.tables import some
from fapn_zoo.tasks.targets import Batch
from fapn_zoo.train.checkpoint import Checkpoints, load_checkpoint
from fapn_zoo.train.diverged import check_gradient, check_state, diverged
from fapn_zoo.train.ending import Ending, out_of_patience
from fapn_zoo.train.log import add_row, read_scores
from fapn_zoo.train.optim import Ema, build_optimizer, learning_rate_factor, param_groups, set_learning_rate, told_rates
from fapn_zoo.train.replay import FILE, keep_batch
from fapn_zoo.train.settings import FREE_ON_RESUME, Settings
from fapn_zoo.train.setup import Parts, anneal, part_losses
from fapn_zoo.train.watching import draw_curves
from fapn_zoo.weights.card import METRICS
from fapn_zoo.weights.finite import NotFinite
from fapn_zoo.weights.folder import save_model

logger = logging.getLogger(__name__)

EVALUATIONS = "evaluations"
OF_IMAGES = 2**32 - 1  # in place of a rank, which no process has: what is drawn for images is not for dropout


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint; the message says how to continue.

    Attributes:
        number: of the signal that this process got first; SIGINT where another process got it.
    """

    def __init__(self, step: int, steps: int, number: int = signal.SIGINT, when: str = "") -> None:
        super().__init__(f"stopped after step {step} of {steps}{when}; continue with resume=auto")
        self.number = number


class Run:
    """The state of a run: model, optimizer, averaged weights and the number of finished steps."""

    def __init__(self, settings: Settings, parts: Parts, accelerator: Accelerator) -> None:
        s = settings
        self.settings, self.parts, self.accelerator = settings, parts, accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.main = accelerator.is_main_process
        self.out = Path(s.out)
        self.local_batch = s.batch_size // self.world
        self.micro_batch = 0 if s.micro_batch == "auto" else s.micro_batch  # 0: all at once, or not known yet
        self.memory_format = torch.channels_last if s.channels_last else torch.contiguous_format
        self.plain = parts.model.to(accelerator.device)  # the module itself, under DDP and compile
        if s.channels_last:
            self.plain = self.plain.to(memory_format=torch.channels_last)
        parts.loss.to(accelerator.device)
        multiples = s.backbone_lr_mult, s.decay_bias, s.offset_lr_mult, s.layer_decay
        groups = param_groups(self.plain, s.lr, s.weight_decay, *multiples)
        if self.main and s.layer_decay != 1:
            logger.info(told_rates(self.plain, s))
        model = torch.compile(self.plain) if s.compile else self.plain
        self.model, self.optimizer = accelerator.prepare(model, build_optimizer(groups, s.optimizer, s.momentum))
        self.trainable = [p for p in self.plain.parameters() if p.requires_grad]
        self.ema = Ema(self.plain, s.ema) if s.ema else None
        self.step, self.best = 0, None  # finished steps; that of the weights in OUT/model, where `best` chose it
        self.logged: dict[str, Any] = {"steps": 0, "sums": {}}  # what a line of the log will be the mean of
        self.checkpoints, self.ending = Checkpoints(self.out), Ending(s)
        self.stop: list[int] = []  # signals that ask to stop

    def update(self, batch: Batch, stop: bool) -> tuple[dict[str, float], bool]:
        """One optimizer step on this process's share of the batch; returns the global losses and whether to stop."""
        seed = step_seed(self.settings.seed, self.step, self.rank)
        torch.manual_seed(seed)  # dropout needs no saved state
        anneal(self.plain, self.ending.done(self.step))
        size = min(self.micro_batch or self.local_batch, self.local_batch)
        batch = batch.to(self.accelerator.device)
        if self.world > 1 and not min(self.settings.crop):  # one size on all, or the result would depend on the shares
            largest = torch.tensor(batch.images.shape[-2:], device=batch.images.device)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            batch = batch.padded(*largest.tolist())
        batch.targets.seeds = self.seeds(len(batch.names)).to(self.accelerator.device)
        parts = list(batch.parts(size))
        totals = self.totals(parts)
        try:
            losses, rest, stopping = self._everywhere(self._backward(parts, totals), stop)
            if rest:
                self.ending.cooling = (self.step, self.step + rest)
                if self.main:
                    logger.info("max_hours: lr falls from step %d on and ends at %d", *self.ending.cooling)
            losses["lr"] = self._descend()
        except ValueError as error:
            self._keep(batch, totals, seed, error)
            raise
        return losses, stopping

    def _keep(self, batch: Batch, totals: dict[str, Tensor], seed: int, error: ValueError) -> None:
        """Writes the batch beside the run, and says so in the error; what cannot be written is not the error."""
        names, file = some(batch.names), self.out / FILE
        told = f"{error}; images: {names}"
        with contextlib.suppress(OSError):
            keep_batch(file, self, batch, totals, seed, told)
            told += f"; `fapn-zoo replay {self.out}` shows it again"
        error.args = (told,)

    def seeds(self, images: int) -> Tensor:
        """Of every image a seed by its position in the stream, whichever process and micro-batch it is in."""
        first = self.step * self.settings.batch_size + self.rank * self.local_batch
        return torch.tensor([step_seed(self.settings.seed, first + i, OF_IMAGES) for i in range(images)])

    def totals(self, parts: list[Batch]) -> dict[str, Tensor]:
        """The counts that the loss of the whole batch is divided by, over all micro-batches and processes."""
        counts = [self.parts.loss.count(part.targets) for part in parts]
        names = list(counts[0])
        device = self.accelerator.device  # a loss of two parts may count on two devices
        sums = self._sum(torch.stack([sum(count[name] for count in counts).to(device) for name in names]))
        return dict(zip(names, sums, strict=True))

    def _backward(self, parts: list[Batch], totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of all micro-batches, whose true masks live no longer than their turn; the sums of their losses."""
        acc, sums = self.accelerator, {}
        while parts:
            part = parts.pop(0)
            with acc.no_sync(self.model) if parts else contextlib.nullcontext():
                losses = self.losses(part, totals)
                acc.backward(losses["loss"] * self.world)  # DDP averages over processes; the loss is already a share
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        return sums

    def losses(self, part: Batch, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one micro-batch, their shares of the whole."""
        try:
            return part_losses(self.model, self.plain.data, self.parts.loss, part, totals, self.memory_format)
        except ValueError as error:  # the matcher's, when training has diverged, or a batch norm's
            raise ValueError(f"step {self.step}: {error}") from error

    def _everywhere(self, losses: dict[str, Tensor], stop: bool) -> tuple[dict[str, float], int, bool]:
        """The losses of all processes together, what the first says of the time that is left (see `Ending`), and
        whether one of them is to stop; ValueError for a loss of NaN.
        """
        flags = float(self.ending.rest(self.step) if self.main else 0), float(stop)
        flags = torch.tensor(flags, device=self.accelerator.device, dtype=torch.float64)
        *values, rest, stopping = self._sum(torch.stack([*losses.values(), *flags])).tolist()
        result = dict(zip(losses, values, strict=True))
        if not all(np.isfinite(v) for v in values):
            raise diverged(self.step, f"the loss is not finite: {result}", self.settings)
        return result, int(rest), stopping > 0

    def _descend(self) -> float:
        """The step of the optimizer and of the averaged weights; returns the learning rate."""
        s = self.settings
        if s.clip_value:
            self.accelerator.clip_grad_value_(self.trainable, s.clip_value)
        norm = self.accelerator.clip_grad_norm_(self.trainable, s.clip_norm) if s.clip_norm else None
        # In fp16 the scaler leaves out steps whose gradients overflow, and goes on with smaller ones.
        check_gradient(self.step, None if self.accelerator.scaler else norm, s)
        rate = set_learning_rate(self.optimizer, learning_rate_factor(self.step, s, self.ending.cooling))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.plain)
        return rate

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in the tensor's own dtype."""
        if self.world > 1:
            tensor = tensor.to(self.accelerator.device, copy=True)
            dist.all_reduce(tensor)
        return tensor

    def save(self) -> None:
        """Writes a checkpoint of the finished steps (main process only; the others wait)."""
        self.check()

        def write() -> None:
            scaler = getattr(self.accelerator, "scaler", None)
            state = {
                "model": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "processes": self.world,
                "logged": self.logged,
            } | self.ending.state()
            if self.settings.micro_batch == "auto":
                state["micro_batch"] = self.micro_batch
            self.checkpoints.save(self.step, state)

        on_main(self.accelerator, write)

    def check(self) -> None:
        """ValueError where weights, averaged weights or the optimizer's state are not finite."""
        state = {"weights": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        state["ema"] = self.ema.means if self.ema else None
        on_main(self.accelerator, lambda: check_state(self.step, self.settings, **state))

    def interrupted(self, when: str = "") -> Interrupted:
        """What to raise after a signal."""
        return Interrupted(self.step, self.settings.steps, *self.stop[:1] or [signal.SIGINT], when)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint folder; ValueError where it is not this model's."""
        state = load_checkpoint(path)
        try:
            self.plain.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not fit the model: {' '.join(str(error).split())[:500]}") from error
        if state["scaler"] is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.logged = state.get("logged", self.logged)
        self.ending.load(state)
        self.micro_batch = state.get("micro_batch", self.micro_batch)
        if self.main:
            logger.info("continuing from step %d (%s)", self.step, path)
            if state["processes"] != self.world:
                logger.warning("was run by %d processes, now %d: equal up to rounding", state["processes"], self.world)

    def lacks_scores(self) -> bool:
        """Whether this step was to be evaluated by the run that went before, which was stopped at it."""
        every = self.settings.eval_every
        if self.parts.val is None or not every or self.step % every or not 0 < self.step < self.settings.steps:
            return False
        return on_main(self.accelerator, lambda: self.step not in read_scores(self.out / "metrics.csv"))

    def out_of_patience(self) -> bool:
        """Whether the evaluations so far say that training is over; the same on all processes."""
        return on_main(self.accelerator, self._out_of_patience) if self.settings.patience else False

    def _out_of_patience(self) -> bool:
        scores, patience = read_scores(self.out / "metrics.csv"), self.settings.patience
        if over := out_of_patience(scores, patience, self.step):
            logger.info("step %d: no better score for patience=%d evaluations; training ends", self.step, patience)
        return over

    def evaluate(self, final: bool = False) -> dict[str, Any] | None:
        """Scores the present (averaged) weights on the validation set; a row of metrics.csv, or None without data."""
        if self.parts.val is None:
            return None
        s = self.settings
        self.check()
        with self._averaged():
            for tensor in self.plain.buffers() if self.world > 1 else ():
                dist.broadcast(tensor, 0)  # each process has norm statistics of its own; those of the first are saved
            weights = str(self.out / "model") if final else f"step {self.step}"
            options = {"task": self.parts.task.name, "amp": self.accelerator.mixed_precision, "progress": self.main}
            options |= {"limit": None if final else s.eval_limit or None, "should_stop": lambda: bool(self.stop)}
            if s.eval_pictures:
                options |= {"out": self.out / EVALUATIONS / f"step-{self.best or self.step:08d}", "worst": 0}
                options["drawn"] = s.eval_pictures
            try:
                report = evaluate(self.plain, self.parts.val, s.val_split, seed=s.seed, weights=weights, **options)
            except Stopped:
                report = None
            except NotFinite as error:
                raise diverged(self.step, str(error).removeprefix(f"{s.model}: "), s) from error
        if report is None:
            self.save()
            raise self.interrupted(", in its evaluation")
        if self.main:
            row = {name: report[name] for name in self.parts.task.columns.means}
            if self.best in (None, self.step):
                add_row(self.out / "metrics.csv", self.step, row)
            if s.curves:
                draw_curves(self.out)
            told = ", ".join(f"{name} {100 * value:.2f}" for name, value in self._scores(report).items())
            logger.info("step %d: %s", self.best or self.step, "; ".join(filter(None, [told, *report["notes"]])))
        if s.log_with:
            self.accelerator.log({f"val/{n}": 100 * v for n, v in self._scores(report).items()}, self.step)
        return report

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the block the model is what is evaluated and saved."""
        with self.ema.applied(self.plain) if self.ema else contextlib.nullcontext():
            anneal(self.plain, self.ending.done(self.best or self.step))
            yield

    def _scores(self, report: dict[str, Any]) -> dict[str, float]:
        """The means of a report by the names that cards have for them, undefined ones left out."""
        means = self.parts.task.columns.means
        named = {name: METRICS[name][0] if name in METRICS else shown for name, shown in means.items()}
        return {shown: report[name] for name, shown in named.items() if report[name] is not None}

    def _told(self) -> dict[str, Any]:
        """The settings as they travel with the weights: without folders of this machine and what changes no weight."""
        told = {k: v for k, v in self.settings.to_dict().items() if k not in FREE_ON_RESUME and v is not None}
        told.pop("checkpoint_path", None)
        if s := self.settings.backbone_weights:
            told["backbone_weights"] = Path(s).name
        started_from = self.settings.model if self.settings.model.startswith("hf-hub:") else self.plain.spec.name
        if self.best is not None:
            told["best_step"] = self.best
        told["micro_batch"] = self.micro_batch
        told |= self.parts.options
        data = self.parts.dataset
        facts = [getattr(one, "facts", {}) for one in getattr(data, "parts", (data,))]  # of the Hub's, where known
        if (report := self.plain.load_report) is not None and report.carried:
            told["classes_kept"], told["classes_new"] = ", ".join(report.carried), ", ".join(report.new) or "none"
        for name in ("revision", "license", "shuffle"):
            if found := ", ".join(dict.fromkeys(one[name] for one in facts if name in one)):
                told[f"data_{name}"] = found
        return told | {"model": started_from, "data": data.name}

    def _go_back(self) -> None:
        """Gives the model the weights of its best evaluation; the last ones are scored before, like all."""
        if on_main(self.accelerator, lambda: self.step not in read_scores(self.out / "metrics.csv")):
            self.evaluate()
        path = on_main(self.accelerator, self.checkpoints.best)
        state = load_checkpoint(path)
        self.best = int(state["step"])
        self.plain.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.main:
            logger.info("best evaluation: step %d of %d", self.best, self.step)

    def finish(self) -> Path:
        """Evaluates, and writes OUT/model and OUT/eval.json."""
        folder = self.out / "model"
        if self.settings.best and self.parts.val is not None:
            self._go_back()
        report = self.evaluate(final=True)
        if self.main and report is None and self.settings.curves:
            draw_curves(self.out)
        if self.main:
            where = f"{report['data']} {report['split']}" if report else ""
            scores = self._scores(report) if report else {}
            metrics = {f"{where} {name}": round(100 * value, 2) for name, value in scores.items()}
            with self._averaged():
                save_model(self.plain, folder, metrics=metrics, training=self._told())
            if report:
                write_json(self.out / "eval.json", report)
        return folder


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63 bit seed that depends on all three and on nothing else."""
    high, low = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32).tolist()
    return (high << 31) | (low >> 1)


def on_main(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Runs the action on the main process; all processes get its result or its error."""
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer[0] = action()
        except (ValueError, OSError) as error:
            answer[0] = error
    (found,) = broadcast_object_list(answer)
    if isinstance(found, Exception):
        raise found
    return found
