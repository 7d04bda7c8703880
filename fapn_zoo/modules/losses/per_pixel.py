"""Cross-entropy over pixels, and over points (PointRend; FACTS section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fapn_zoo.modules.heads.outputs import PointRendOutput, SemanticOutput, Targets
from fapn_zoo.modules.losses.loss import Loss, Totals

KINDS = ("ce", "ce+dice", "ohem", "lovasz")
HARD, HARD_SHARE = 0.7, 16  # of OHEM: probability of a hard pixel's class, and one of so many pixels is hard at least


def upsample_to(maps: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Bilinear upsampling of (N, C, h, w) by exactly `stride`, then a crop to (height, width).

    The grid of a strided network reaches past an image whose size is no multiple of the stride, so stretching the
    map to the image's size would shift it by a fraction of a pixel (FACTS section 2, per-pixel baseline).
    """
    size = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[..., :height, :width]


class PerPixelLoss(Loss):
    """Weighted mean cross-entropy over labelled pixels, on logits upsampled to the labels' size, or a loss beside it.

    Pixels of `ignore_index` do not count; `class_weights` is a factor per class, empty weighs all alike. Kinds:

    `"ce"`: as said. `"ce+dice"`: and 1 - dice of the classes that an image has (smoothed by 1, as MaskFormer), as a
    mean over these pairs of image and class. `"ohem"`: of every image the (weighted) mean over hard pixels, whose class
    has a probability below 0.7, or over the hardest sixteenth if that is more (Shrivastava et al., CVPR 2016, with the
    numbers of BiSeNet); a mean over images. `"lovasz"`: the Lovasz-Softmax of every image (Berman et al., CVPR
    2018), a mean over its classes, and over images; it knows no class weights.

    How many pixels are hard is known too late to divide a batch by it, hence the means over images, with which all
    kinds are the same however a batch is spread. With several images the official OHEM is a mean over all pixels.
    """

    def __init__(self, ignore_index: int = 255, class_weights: Sequence[float] = (), kind: str = "ce") -> None:
        super().__init__()
        self.ignore_index, self.kind = ignore_index, kind
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def of(cls, model: nn.Module, class_weights: Sequence[float] = (), loss: str = "ce") -> Self:
        """Raises ValueError for class weights that are not one positive number per class, and an unknown loss."""
        if loss not in KINDS or (loss == "lovasz" and class_weights):
            has = "knows no class_weights" if loss == "lovasz" else f"expected one of {', '.join(KINDS)}"
            raise ValueError(f"loss={loss!r}; {has}")
        if class_weights and (len(class_weights) != model.num_classes or min(class_weights) <= 0):
            raise ValueError(
                f"class_weights has {len(class_weights)} values {tuple(class_weights)}; expected a positive number "
                f"for each of the {model.num_classes} classes"
            )
        return cls(ignore_index=model.data.ignore_index, class_weights=class_weights, kind=loss)

    def count(self, targets: Targets) -> Totals:
        """`pixels`: the number of labelled ones, or the sum of their weights. Where the kind divides by them, `images`,
        those with a labelled pixel, and `present`, how many classes all of them have.
        """
        known = targets.labels != self.ignore_index
        labelled = targets.labels[known]
        counts = {"pixels": torch.tensor(float(labelled.numel()), dtype=torch.float64, device=labelled.device)}
        if self.class_weights is not None:
            found = torch.bincount(labelled, minlength=len(self.class_weights)).double()
            counts = {"pixels": (found * self.class_weights.to(found)).sum()}
        if self.kind != "ce":
            counts["images"] = known.flatten(1).any(dim=1).sum().double()
            counts["present"] = counts["images"].new_tensor(sum(map(len, targets.object_classes())))
        return counts

    def forward(self, output: SemanticOutput, targets: Targets, totals: Totals | None = None) -> Totals:
        """Logits (N, K, h, w) at their stride against labels (N, H, W); `ce` and `dice` where there are both."""
        totals, terms = totals or self.count(targets), {}
        for logits in (output.logits, *output.aux):
            for name, value in self._terms(logits, targets.labels, output.stride, totals).items():
                terms[name] = terms.get(name, 0) + value
        return {"loss": sum(terms.values())} | (terms if len(terms) > 1 else {})

    def _terms(self, logits: Tensor, labels: Tensor, stride: int, totals: Totals) -> Totals:
        divisors = {name: total.clamp(min=1e-6).float() for name, total in totals.items()}
        logits, weight = upsample_to(logits.float(), *labels.shape[-2:], stride), self._weight(logits)
        terms = {}
        if "ce" in self.kind:
            options = {"ignore_index": self.ignore_index, "reduction": "sum"}
            terms["ce"] = F.cross_entropy(logits, labels, weight, **options) / divisors["pixels"]
        images = list(zip(logits.flatten(2), labels.flatten(1), strict=True)) if self.kind != "ce" else []
        images = [(x[:, known], y[known]) for x, y in images for known in [y != self.ignore_index]]
        if self.kind == "ce+dice":
            terms["dice"] = sum(map(dice_sum, *zip(*images, strict=True))) / divisors["present"]
        elif self.kind == "ohem":
            terms["ohem"] = sum(hard_mean(x, y, weight) for x, y in images) / divisors["images"]
        elif self.kind == "lovasz":
            terms["lovasz"] = sum(map(lovasz_softmax, *zip(*images, strict=True))) / divisors["images"]
        return terms

    def _weight(self, logits: Tensor) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.to(logits.device)


def dice_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (K, P) of pixels with labels (P,): 1 - dice, summed over the classes that are there."""
    classes = torch.bincount(labels).nonzero()
    p, true = logits.softmax(0)[classes[:, 0]], labels == classes
    return (1 - (2 * p.where(true, 0).sum(1) + 1) / (p.sum(1) + true.sum(1) + 1)).sum()


def hard_mean(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Logits (K, P) of pixels with labels (P,): the mean cross-entropy of the hard ones, 0 without pixels."""
    losses = F.cross_entropy(logits.T, labels, reduction="none")
    if not len(losses):
        return logits.sum()
    least = losses.detach().topk(max(len(losses) // HARD_SHARE, 1)).values[-1]
    hard = losses >= least.clamp(max=-math.log(HARD))
    weights = hard.float() if weight is None else weight[labels] * hard
    return (losses * weights).sum() / weights.sum()


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (K, P) of pixels with labels (P,): a mean over the classes that are there, 0 without pixels.

    The errors of a class, the largest first, times how much each lowers its Jaccard index when it is made.
    """
    if not len(labels):
        return logits.sum()
    classes = torch.bincount(labels).nonzero()
    p, true = logits.softmax(0)[classes[:, 0]], labels == classes
    errors, order = torch.where(true, 1 - p, p).sort(dim=1, descending=True, stable=True)
    true = true.gather(1, order).float()
    size = true.sum(1, keepdim=True)
    jaccard = 1 - (size - true.cumsum(1)) / (size + (1 - true).cumsum(1))
    return (errors * jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))).sum(1).mean()


class PointRendLoss(PerPixelLoss):
    """`PerPixelLoss`, of any kind, of the coarse logits, plus the mean cross-entropy of the points, of equal weights.

    The label of a point is that of the pixel it lies in. The points' term is a mean over images of means over their
    labelled points: counts are needed before the points are drawn, and how many images have labels is known then. With
    one image, or equal shares of ignored points, it is the official mean over all labelled points.
    """

    def count(self, targets: Targets) -> Totals:
        """`pixels` as in `PerPixelLoss`; `images`, those with a labelled pixel."""
        labelled = (targets.labels != self.ignore_index).flatten(1).any(dim=1)
        return super().count(targets) | {"images": labelled.sum().double()}

    def forward(self, output: PointRendOutput, targets: Targets, totals: Totals | None = None) -> Totals:
        """`loss` and its terms `coarse` and `point`. Labels are (N, H, W)."""
        totals = totals or self.count(targets)
        images = totals["images"].clamp(min=1e-6).float()
        coarse = sum(self._terms(output.logits, targets.labels, output.stride, totals).values())
        height, width = (side * output.stride for side in output.logits.shape[-2:])
        labels = labels_at(targets.labels, output.points, (height, width), self.ignore_index)
        point = self._means(output.point_logits.float(), labels).sum() / images
        return {"loss": coarse + point, "coarse": coarse, "point": point}

    def _means(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of every image the (weighted) mean over its labelled points, (N,); 0 where it has none."""
        known, weight = labels != self.ignore_index, self._weight(logits)
        losses = F.cross_entropy(logits, labels, weight, ignore_index=self.ignore_index, reduction="none")
        weights = known.float() if weight is None else weight[labels.where(known, 0)] * known
        return losses.sum(1) / weights.sum(1).clamp(min=1e-6)


def labels_at(labels: Tensor, points: Tensor, extent: tuple[int, int], ignore_index: int) -> Tensor:
    """Labels (N, H, W) of the pixels that points (N, P, 2) of an `extent` (height, width) lie in: (N, P).

    The extent of a strided map reaches past an image whose size is no multiple of the stride; there the label is
    `ignore_index`.
    """
    height, width = labels.shape[-2:]
    x, y = (points * points.new_tensor(extent[::-1])).long().unbind(dim=2)
    inside = (x < width) & (y < height)
    found = labels.flatten(1).gather(1, y.clamp(max=height - 1) * width + x.clamp(max=width - 1))
    return torch.where(inside, found, ignore_index)
