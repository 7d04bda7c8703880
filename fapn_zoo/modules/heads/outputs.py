"""Where heads, losses and tasks meet: what a head gives, and the truth that its loss compares it with.

N images, K classes, Q queries, M objects of one image.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor


class ClassRows(NamedTuple):
    """How classes lie in a layer of a head, so that weights can follow them by name; `classifier` has one per layer.

    Its output channels are `first` others, then as many for each class as fit, class after class, then `last` others.
    """

    of: str = "classes"  # all, "things" or "stuff", by increasing id; "": no output is of a class
    first: int = 0
    last: int = 0  # "no object", background
    inputs: bool = False  # its last input channels are the classes, one each


class Output(Protocol):
    """The raw output of a head for N images: maps at a stride, before softmax, thresholds and resizing.

    All of its numbers are finite: predictions and evaluations stop at a NaN or an infinity in any tensor of it.
    A head is `forward(pyramid, features, sizes=None, targets=None) -> Output`: the neck's maps and the backbone's,
    both from fine to coarse, the sizes (N, 2) of the images without their padding, and while training the `Targets`.
    Heads that score pixels or masks read neither of the last two. What a head draws at random for an image while
    training follows from its seed in the targets, so that it is the same in every batch. A head whose output is a
    choice, which rounding can turn, also has `before_choice(pyramid)`: tensors by name, to which all of its layers
    contribute smoothly.
    """

    @property
    def stride(self) -> int:
        """Pixels of the network input per pixel of the maps."""

    def image(self, n: int) -> Self:
        """The output of image `n` alone (N = 1), without the auxiliary outputs of training."""


class SemanticOutput(NamedTuple):
    """Per-pixel scores before softmax: `logits` (N, K, h, w); `aux` holds those of earlier decoder layers."""

    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    stride: int = 4

    def image(self, n: int) -> SemanticOutput:
        return SemanticOutput(self.logits[n : n + 1], stride=self.stride)


class MaskFormerOutput(NamedTuple):
    """A set of Q masks per image; `aux` holds those of earlier decoder layers, if training asks for them."""

    class_logits: Tensor  # (N, Q, K + 1); the last class is "no object"
    mask_logits: Tensor  # (N, Q, h, w), before the sigmoid
    aux: tuple[tuple[Tensor, Tensor], ...] = ()  # the same pairs, first layer first
    stride: int = 4
    object_threshold: float = 0.8  # what the class probability of a panoptic segment must exceed
    extent: tuple[int, int] | None = None  # (H, W) that the maps are stretched over; None: `stride` times their size
    sure: bool = False  # a panoptic segment keeps only those pixels where its mask has a probability of 0.5 or more

    def image(self, n: int) -> MaskFormerOutput:
        return self._replace(class_logits=self.class_logits[n : n + 1], mask_logits=self.mask_logits[n : n + 1], aux=())

    @property
    def covers(self) -> tuple[int, int]:
        """(height, width) in pixels of the network input, or of the whole cells where it is not known."""
        return self.extent or tuple(side * self.stride for side in self.mask_logits.shape[-2:])


class PointRendOutput(NamedTuple):
    """What PointRend is trained by: coarse logits, and those of P points; predicting, it gives a `SemanticOutput`."""

    logits: Tensor  # (N, K, h, w)
    points: Tensor  # (N, P, 2): x and y, 0..1 over the extent of the logits
    point_logits: Tensor  # (N, K, P)
    stride: int = 4

    def image(self, n: int) -> PointRendOutput:
        return PointRendOutput(*(tensor[n : n + 1] for tensor in self[:3]), stride=self.stride)


class DetectionOutput(NamedTuple):
    """Detections of N images, D of each (D may differ and be 0), the best first.

    They are in pixels of the network input, inside the images without their padding.
    """

    boxes: tuple[Tensor, ...]  # (D, 4) x1, y1, x2, y2
    scores: tuple[Tensor, ...]  # (D,) in 0..1
    classes: tuple[Tensor, ...]  # (D,) int64
    stride: int = 1

    def image(self, n: int) -> DetectionOutput:
        return DetectionOutput(*(field[n : n + 1] for field in self[:3]))


class InstanceOutput(NamedTuple):
    """`DetectionOutput` and of each box its mask: `mask_logits` (D, S, S) of its cells, before the sigmoid."""

    boxes: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...]
    stride: int = 1

    def image(self, n: int) -> InstanceOutput:
        return InstanceOutput(*(field[n : n + 1] for field in self[:4]))


class MergeRule(NamedTuple):
    """When objects and stuff get pixels of a panoptic map; see `fapn_zoo.postprocess.merge.merge`."""

    score_threshold: float = 0.5
    overlap_threshold: float = 0.5
    stuff_area: int = 4096

    @classmethod
    def checked(cls, merge_score: float, merge_overlap: float, stuff_area: int) -> MergeRule:
        """Raises ValueError for a score or overlap outside 0..1, or an area below 0."""
        if not (0 <= merge_score <= 1 and 0 <= merge_overlap <= 1 and stuff_area >= 0):
            given = f"merge_score={merge_score}, merge_overlap={merge_overlap}, stuff_area={stuff_area}"
            raise ValueError(f"{given}; expected 0..1, 0..1, and pixels from 0 on")
        return cls(merge_score, merge_overlap, stuff_area)

    def but(self, given: Mapping[str, float | None]) -> dict[str, float]:
        """All of it by name, with what is given and not None in place of its own."""
        return self._asdict() | {name: value for name, value in given.items() if value is not None}


def count_things(things: Sequence[int], num_classes: int) -> int:
    """How many classes are things: all where `things` are empty. ValueError for ids that are none of the classes."""
    if not {*things} <= {*range(num_classes)} or len({*things}) != len(things):
        raise ValueError(f"things={tuple(things)}; expected different ids of the {num_classes} classes, from 0 on")
    return len(things) or num_classes


class PanopticFPNOutput(NamedTuple):
    """`InstanceOutput`, and beside it `semantic_logits` (N, C, h, w), whose channel 0 is all things together.

    Classes of boxes count things, the other channels stuff, both by increasing class ids.
    """

    boxes: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...]
    semantic_logits: Tensor
    stride: int = 4  # of the semantic logits
    rule: MergeRule = MergeRule()

    def image(self, n: int) -> PanopticFPNOutput:
        return self._replace(**{name: getattr(self, name)[n : n + 1] for name in self._fields[:5]})


class Compared(NamedTuple):
    """Of every image what was found and what is true, tensors of one shape, or class logits and class ids."""

    found: tuple[Tensor, ...]
    true: tuple[Tensor, ...]

    def and_of(self, found: Tensor, true: Tensor) -> Compared:
        """With one more image."""
        return Compared((*self.found, found), (*self.true, true))

    def image(self, n: int) -> Compared:
        return Compared(self.found[n : n + 1], self.true[n : n + 1])


class RCNNOutput(NamedTuple):
    """What a two-stage head is trained by; predicting, it gives detections.

    Of an image S anchors and R regions are drawn, of which O and P belong to objects.
    """

    rpn_class: Compared  # logits (S,), and 1.0 for an object, 0.0 for background
    rpn_box: Compared  # deltas (O, 4)
    classes: Compared  # logits (R, K + 1), and class ids (R,), K for background
    box: Compared  # deltas (P, 4) of the true class
    masks: dict[str, Compared] = {}  # by the name of a term of the loss: logits (P, ...) of the true class, and 0.0..1
    stride: int = 1

    def image(self, n: int) -> RCNNOutput:
        masks = {name: compared.image(n) for name, compared in self.masks.items()}
        return RCNNOutput(*(field.image(n) for field in self[:4]), masks, self.stride)


class PanopticFPNParts(NamedTuple):
    """What Panoptic FPN is trained by: its two parts."""

    objects: RCNNOutput  # of things
    semantic: SemanticOutput  # all things together, then stuff

    @property
    def stride(self) -> int:
        return self.semantic.stride

    def image(self, n: int) -> PanopticFPNParts:
        return PanopticFPNParts(self.objects.image(n), self.semantic.image(n))


class PanopticFCNOutput(NamedTuple):
    """Positions and kernels of five levels (FACTS section 4): things and stuff both by increasing class ids.

    The mask of a kernel is its product with the features, before the sigmoid; of stuff, `stuff_base` is added to it.
    """

    centres: tuple[Tensor, ...]  # of every level logits (N, T, h, w), where objects of a class have their centres
    regions: tuple[Tensor, ...]  # logits (N, S + 1, h, w), where a class of stuff is; the first: any thing
    thing_kernels: tuple[Tensor, ...]  # (N, E, h, w)
    stuff_kernels: tuple[Tensor, ...]  # (N, E, h, w); of a region, the mean over the level with zero elsewhere
    features: Tensor  # (N, E, H, W)
    stuff_base: Tensor  # (N, H, W)
    stride: int = 4  # of the features; the first level has twice that
    rule: MergeRule = MergeRule()

    def image(self, n: int) -> PanopticFCNOutput:
        levels = (tuple(level[n : n + 1] for level in maps) for maps in self[:4])
        return PanopticFCNOutput(*levels, *(maps[n : n + 1] for maps in self[4:6]), self.stride, self.rule)


def covering(output: Output, size: tuple[int, int]) -> Output:
    """The output, knowing the size (H, W) of the network input if it has to.

    MaskFormer's masks are stretched over it, also where it ends inside a cell: an image that is not padded.
    """
    return output._replace(extent=size) if isinstance(output, MaskFormerOutput) else output


def tensors_only(output: Output) -> Output:
    """An output in which only tensors are elements of the tuple; the rest, such as `stride`, can still be read.

    An output that is no named tuple stays as it is.
    """
    if not hasattr(output, "_asdict"):
        return output
    fields = output._asdict()
    kept = {n: value for n, value in fields.items() if isinstance(value, Tensor) or (value and type(value) is tuple)}
    kind = namedtuple(type(output).__name__, kept)
    for name in fields.keys() - kept.keys():
        setattr(kind, name, fields[name])
    return kind(**kept)


for _kind in [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, tuple)]:
    if hasattr(pytree, "_register_namedtuple"):  # a name for `torch.export.save`
        pytree._register_namedtuple(_kind, serialized_type_name=f"{_kind.__module__}.{_kind.__name__}")


HELD = ("labels", "classes", "masks", "boxes", "seeds")  # of `Targets`, image by image


@dataclass(eq=False)
class Targets:
    """The truth of N images of one size (H, W); what a task does not need is left empty.

    Attributes:
        labels: (N, H, W) int64 class ids, `ignore_index` where no class is.
        classes: of every image its objects' classes (M,) int64; M may be 0.
        masks: of every image its objects' masks (M, H, W) bool; () where there are boxes alone.
        boxes: of every image its objects' boxes (M, 4) float32 x1, y1, x2, y2, in pixels of (H, W).
        seeds: (N,) int64, of what is drawn at random for an image; None: PyTorch's generator decides.
    """

    labels: Tensor | None = None
    classes: tuple[Tensor, ...] = ()
    masks: tuple[Tensor, ...] = ()
    boxes: tuple[Tensor, ...] = ()
    ignore_index: int = 255
    seeds: Tensor | None = None
    _classes: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False)
    _segments: list[tuple[Tensor, Tensor]] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.classes) if self.labels is None else len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Class ids travel as bytes where they can: fresh shared memory takes a worker longer than decoding does."""
        labels = self.labels
        if labels is not None and labels.numel() and 0 <= labels.min() and labels.max() < 256:
            return self.__dict__ | {"labels": labels.to(torch.uint8)}
        return self.__dict__

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        labels = state["labels"]
        self.__dict__.update(state, labels=None if labels is None else labels.long())

    def part(self, first: int, last: int) -> Targets:
        """The images `first`..`last` - 1."""
        return self._each(lambda held: held[first:last])

    def of_classes(self, chosen: Sequence[int]) -> Targets:
        """With objects of the `chosen` classes alone, whose new class is the place of the old one among them."""
        places = {old: new for new, old in enumerate(chosen)}
        rows = [[m for m, old in enumerate(classes.tolist()) if old in places] for classes in self.classes]

        def kept(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(t[r] for t, r in zip(part, rows, strict=True)) if part else ()

        classes = tuple(c.new_tensor([places[old] for old in c.tolist()]) for c in kept(self.classes))
        return replace(self, classes=classes, masks=kept(self.masks), boxes=kept(self.boxes))

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return self._each(lambda held: pytree.tree_map(lambda tensor: tensor.to(device, non_blocking=True), held))

    def pin_memory(self) -> Targets:
        """The same in page-locked memory; a `DataLoader` asks for it."""
        return self._each(lambda held: pytree.tree_map(Tensor.pin_memory, held))

    def _each(self, change: Callable[[Any], Any]) -> Targets:
        """With all that is held changed: tensors (N, ...) and tuples of N tensors."""
        held = {name: getattr(self, name) for name in HELD}
        return replace(self, **{name: change(value) for name, value in held.items() if value is not None})

    def object_classes(self) -> tuple[Tensor, ...]:
        """Of every image the classes (M,) of `segments`, for which no mask is made; found once and kept."""
        if self._classes is None:
            if self.labels is None or self.classes:
                self._classes = self.classes
            else:
                known = (labels[labels != self.ignore_index] for labels in self.labels)
                self._classes = tuple(torch.bincount(ids).nonzero().flatten() for ids in known)
        return self._classes

    def segments(self) -> list[tuple[Tensor, Tensor]]:
        """Of every image classes (M,) and masks (M, H, W): its objects, or one mask per class of its labels.

        The masks are made once and kept.
        """
        if self._segments is None:
            classes = self.object_classes()
            if self.labels is None or self.classes:
                masks = self.masks
            else:
                masks = [labels[None] == ids[:, None, None] for labels, ids in zip(self.labels, classes, strict=True)]
            self._segments = list(zip(classes, masks, strict=True))
        return self._segments

    def padded(self, height: int, width: int) -> Targets:
        """Grown at the bottom and right to (height, width): no class there, and no object."""

        def grown(maps: Tensor, value: int | bool) -> Tensor:
            right, bottom = width - maps.shape[-1], height - maps.shape[-2]
            return F.pad(maps, (0, right, 0, bottom), value=value) if right or bottom else maps

        labels = None if self.labels is None else grown(self.labels, self.ignore_index)
        return replace(self, labels=labels, masks=tuple(grown(m, False) for m in self.masks))

    @classmethod
    def joined(cls, parts: list[Targets]) -> Targets:
        """The targets of several batches of one size as those of one."""
        held = {name: [getattr(part, name) for part in parts] for name in HELD}
        held = {name: values for name, values in held.items() if values[0] is not None}
        whole = {n: torch.cat(v) if isinstance(v[0], Tensor) else sum(v, ()) for n, v in held.items()}
        return cls(**whole, ignore_index=parts[0].ignore_index)
