"""A head, its loss, its output and its task, all from outside the package, through the registries alone.

The toy counts: for every image how many pixels each class has, as a share. It is trained, scored and predicted by the
package's own loops, none of which knows it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.data.sample import LABELS
from fapn_zoo.evaluate import compare, evaluate, render, write_report
from fapn_zoo.metrics.accumulator import UNIT, Accumulator
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.modules.losses import Loss
from fapn_zoo.postprocess import decoders, register_output
from fapn_zoo.tasks import TASKS, register_task
from fapn_zoo.tasks.protocol import Columns, Measure
from fapn_zoo.tasks.result import blank_result
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings
from fapn_zoo.zoo import parts

pytestmark = pytest.mark.train
PACKAGE = Path(fapn_zoo.__file__).parent


class SharesOutput(NamedTuple):
    """Logits (N, K) of how much of an image each class takes."""

    logits: Tensor
    stride: int = 1

    def image(self, n: int) -> SharesOutput:
        return SharesOutput(self.logits[n : n + 1])


class SharesHead(nn.Module):
    classifier = ("predictor",)

    def __init__(self, in_channels: int, feature_channels: int, num_classes: int) -> None:
        super().__init__()
        self.predictor = nn.Linear(in_channels, num_classes)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        features: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> SharesOutput:
        assert sizes is None or (sizes.shape == (len(pyramid[0]), 2) and (targets is None) == (not self.training))
        return SharesOutput(self.predictor(pyramid[0].mean((2, 3))))


class SharesLoss(Loss):
    """Cross-entropy of true and predicted shares, summed over images."""

    @classmethod
    def of(cls, model: nn.Module, **options: Any) -> Self:
        assert not options
        loss = cls()
        loss.num_classes = model.num_classes
        return loss

    def count(self, targets: Targets) -> dict[str, Tensor]:
        return {"images": torch.tensor(float(len(targets)), dtype=torch.float64)}

    def forward(
        self, output: SharesOutput, targets: Targets, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        images = (totals or self.count(targets))["images"]
        truth = torch.stack([shares(labels.numpy(), self.num_classes) for labels in targets.labels])
        return {"loss": -(truth * output.logits.log_softmax(1)).sum() / images.float()}


def shares(labels: np.ndarray, num_classes: int) -> Tensor:
    counts = np.bincount(labels.ravel(), minlength=256)[:num_classes]
    return torch.from_numpy((counts / max(counts.sum(), 1)).astype(np.float32))


class Overlap(Accumulator):
    """Per class the sum of the smaller of true and predicted share, and of the true one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__((2, num_classes), num_classes=num_classes)


class SharesScorer:
    rank_by = "overlap"

    def __init__(self, names: tuple[str, ...], data: fapn_zoo.DataSpec) -> None:
        self.names, self.data = names, data
        self.measures = (Measure("overlap", "mean", lambda tally: tally.counts.numpy()),)

    def empty(self) -> Overlap:
        return Overlap(len(self.names))

    def count(self, answer: Tensor, sample: Any, place: int) -> Overlap:
        tally, truth = self.empty(), shares(sample.labels, len(self.names))
        tally.counts += (torch.stack([torch.minimum(truth, answer), truth]).double() * UNIT).round().long()
        return tally

    def scores(self, tally: Overlap) -> dict[str, Any]:
        hit, truth = (tally.counts.double() / UNIT).tolist()
        rows = [
            {"id": i, "name": name, "overlap": h / t if t else None}
            for i, (name, h, t) in enumerate(zip(self.names, hit, truth, strict=True))
        ]
        return {"overlap": sum(hit) / sum(truth), "classes": rows}

    def image_score(self, tally: Overlap) -> float:
        return self.scores(tally)["overlap"]

    def confusion(self, tally: Overlap) -> None:
        return None

    def maps(self, answer: Tensor, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.full_like(sample.labels, answer.argmax()), sample.labels


class SharesTask:
    name, needs, averages_views, joins_windows, scored = "shares", LABELS, False, False, {}
    columns = Columns({"overlap": "overlap of shares"}, {"overlap": "overlap"}, ("overlap",))

    def result(self, answer: Tensor, image: Any, data: fapn_zoo.DataSpec) -> Any:
        result = blank_result(image, data, self.name)
        result.labels[:] = answer.argmax().item()
        result.scores[:] = answer.max().item()
        return result

    def targets(self, sample: Any, labels: Any) -> Targets:
        return TASKS["semantic"].targets(sample, labels)

    def scorer(self, dataset: Any, classes: Any, data: fapn_zoo.DataSpec, *, boundary: bool = False) -> SharesScorer:
        return SharesScorer(classes.names, data)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = SimpleNamespace(SharesHead=SharesHead, SharesLoss=SharesLoss)
    monkeypatch.setitem(sys.modules, "toy_of_the_test", module)
    head = parts.HeadPart("toy_of_the_test:SharesHead", "toy_of_the_test:SharesLoss", ("shares",), "maskformer", 1)
    parts.register_head("shares", head)
    register_output(SharesOutput, {"shares": lambda output, frame, data: output.logits[0].float().softmax(0)})
    register_task(SharesTask())
    for again in (
        lambda: parts.register_head("shares", head),
        lambda: register_output(SharesOutput, {}),
        lambda: register_task(SharesTask()),
    ):
        with pytest.raises(ValueError, match="already"):
            again()
    yield
    del parts.HEADS["shares"], decoders.DECODERS[SharesOutput], TASKS["shares"]


def digest() -> str:
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_a_head_a_loss_and_a_task_from_outside(registered: None, tmp_path: Path):
    before = digest()
    assert "shares_fpn" in fapn_zoo.list_models(task="shares")
    options = {"neck_out_channels": 16}
    run = Settings(
        model="shares_fapn", backbone="test_efficientnet", model_args={**options, "neck_deform_groups": 2},
        data="scenes:8@64x96", val_data="scenes:4@64x96", crop=(64, 96), steps=10, batch_size=4, micro_batch=2, lr=3e-3,
        log_every=1, threads=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    folder = train(run)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 10 and losses[-1] < losses[0]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["task"] == "shares" and "overlap of shares" in str(config["metrics"])

    model = fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    scene = np.zeros((64, 96, 3), np.uint8)
    result = model.predict(scene)
    assert result.task == "shares" and result.labels.shape == (64, 96) and 0 < result.scores.max() <= 1
    result.overlay(legend=True)
    with pytest.raises(ValueError, match="tile works for task 'semantic' or .*'detection' only, not 'shares'"):
        model.predict(scene, tile=64)
    with pytest.raises(ValueError, match="task 'semantic'; shares_fapn has shares"):
        model.predict(scene, task="semantic")

    report = evaluate(model, "scenes:4@64x96", "val", task="shares", progress=False)
    again = evaluate(model, "scenes:4@64x96", "val", task="shares", progress=False, resume=tmp_path / "state")
    assert again["overlap"] == report["overlap"] > 0.2
    assert "overlap of shares" in render(report)
    write_report(report, csv=tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().splitlines()[0].endswith(",overlap,boundary_ap")
    fresh = fapn_zoo.create_model("shares_fpn", backbone="test_efficientnet", num_classes=11, **options)
    sides = compare([model, fresh], "scenes:4@64x96", task="shares", progress=False, resamples=20)
    assert sides["differences"][0]["measures"]["overlap"]["value"] is not None
    with torch.no_grad():
        model.head.predictor.bias[3] = float("nan")
    with pytest.raises(ValueError, match="shares_fapn: no answer for image, .*: NaN in head.predictor.bias"):
        model.predict(scene)
    model.head.predictor.bias.requires_grad_(False)[3] = 0
    model.head.register_forward_hook(lambda module, inputs, output: SharesOutput(output.logits / 0))
    with pytest.raises(ValueError, match=r"shares_fapn: the output for scene\S+ is not finite \(inf in logits\)"):
        evaluate(model, "scenes:4@64x96", "val", task="shares", progress=False)
    assert digest() == before
