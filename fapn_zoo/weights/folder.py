"""Weights folders: reading them into a model, and writing them.

A folder holds `model.safetensors`, `config.json` (the description) and `README.md` (the card). Only safetensors
are read; what is adapted on purpose is reported tensor by tensor, everything else that does not fit raises.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fapn_zoo.runtime.files import json_text, load_json, make_folder, move_files, new_folder, read_json, write_whole
from fapn_zoo.runtime.provenance import versions
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights.card import render_card
from fapn_zoo.weights.class_rows import carry, known_names, same_classes
from fapn_zoo.weights.finite import NotFinite, check_finite
from fapn_zoo.weights.probe import probe
from fapn_zoo.zoo.spec import ModelSpec

logger = logging.getLogger(__name__)

FORMAT = 1
Tensors = Mapping[str, Tensor]
PACKAGES = ("torch", "torchvision", "timm")  # that decide what the weights compute


@dataclass(frozen=True)
class LoadReport:
    """What loading did. `adapted` and `fresh` name tensors that were changed to fit or left at random values.

    `carried` names the classes whose rows followed them by name, `new` those whose rows are random.
    """

    loaded: int
    adapted: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        parts += [f"adapted: {', '.join(self.adapted)}"] if self.adapted else []
        parts += [f"left random: {', '.join(self.fresh)}"] if self.fresh else []
        count = f"{len(self.carried)} of {len(self.carried + self.new)} classes keep their rows by name"
        parts += [f"{count}: {', '.join(self.carried)}"] if self.carried else []
        parts += [f"no class of theirs: {', '.join(self.new)}"] if self.new else []
        return "; ".join(parts)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The parsed `config.json`. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / CONFIG
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no weights folder {str(folder)!r}")
    if not path.is_file():
        killed = f", but {WEIGHTS}: was its writer killed? Write it again" if (path.parent / WEIGHTS).is_file() else ""
        raise FileNotFoundError(f"{str(folder)!r} is no weights folder: it has no {CONFIG}{killed}")
    config = load_json(path)
    if not isinstance(config, dict) or "model" not in config:
        raise ValueError(f"{path} has no 'model' entry; is it the config of another library?")
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} has format {config.get('format')!r}, this version reads {FORMAT}")
    return config


def read_spec(folder: str | Path) -> ModelSpec:
    """The model description of a weights folder. Raises as `read_config`, and ValueError for what it cannot mean."""
    config = read_config(folder)
    try:
        return ModelSpec.from_config(config["model"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{Path(folder) / CONFIG}: {error}") from error


def load_weights(
    model: nn.Module, source: str | Path, *, saved: ModelSpec | None = None, by_name: bool = False, share: bool = False
) -> LoadReport:
    """Reads weights into a model.

    Args:
        model: any dtype, any device.
        source: a safetensors file or a weights folder.
        saved: the description that the tensors were saved with. Where its `num_classes` or `in_chans` differ from
            the model's, the classifier stays random and the first convolution is adapted; without it all must fit.
        by_name: where `saved` has other classes, rows of the classifier follow those of the same name, and only the
            others stay random. Where names are not known on both sides, rows stay where they are.
        share: leave the weights in the mapped file, see `assign_tensors`; for files that nobody writes to.

    Raises:
        FileNotFoundError: no such file. ValueError: not safetensors, or tensors missing, unexpected or of another
            shape, naming up to five.
    """
    path = Path(source)
    path = path / WEIGHTS if path.is_dir() else path
    tensors, state = read_tensors(path), model.state_dict()
    adapted, fresh, carried, new = [], [], (), ()
    if saved is not None and not same_classes(saved, model.spec, by_name):
        if by_name:
            carried = carry(model, tensors, saved)
            new = tuple(name for name in known_names(model.spec) if name not in carried)
        fresh = [] if carried else classifier_keys(model)
        for key in fresh:
            tensors.pop(key, None)
    if saved is not None and saved.in_chans != model.spec.in_chans:
        adapted = adapt_input(tensors, state, saved.in_chans, model.spec.in_chans)
    assign_tensors(model, tensors, path, fresh=fresh, share=share)
    report = LoadReport(len(tensors), tuple(adapted), tuple(fresh), carried, new)
    if adapted or fresh or carried:  # what fits needs no words
        logger.warning("%s: %s", path, report)
    return report


def classifier_keys(model: nn.Module) -> list[str]:
    """State-dict names whose shape depends on `num_classes`, as the head names them."""
    prefixes = tuple(f"head.{name}." for name in model.head.classifier)
    return [key for key in model.state_dict() if key.startswith(prefixes)]


class WithoutInit(TorchFunctionMode):
    """Modules made in this context keep their parameters unwritten, for weights that replace every one of them.

    Operations in place on parameters are left out. Buffers get their values, since those that are not stored with the
    weights must have them. As modes are per thread, models made meanwhile in other threads are whole.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith(("__", "requires_grad_")):
            target = args[0] if args else kwargs.get("tensor")  # torch.nn.init hands its tensor on by name
            if isinstance(target, nn.Parameter):
                return target
        return function(*args, **(kwargs or {}))


def assign_tensors(
    model: nn.Module, tensors: Tensors, origin: str | Path, *, fresh: Sequence[str] = (), share: bool = False
) -> None:
    """Gives a model the values of tensors, all or none.

    Args:
        model: any dtype, any device; it may have been made in `WithoutInit`.
        tensors: one for every name of the model's state dict, of any floating-point dtype. Counters of batches are
            left out where the model's norms are frozen, and 0 where those of the tensors were.
        origin: the file that an error names.
        fresh: names that keep the values they have.
        share: use the tensors themselves where their dtype is the model's, instead of copies. Those of `read_tensors`
            then live in the mapped file until something writes to them: nothing is read before it is needed, and
            processes share it; but the file must not be overwritten in place, and the last bits of results may differ
            from those of a copy, whose memory is aligned otherwise.

    Raises:
        ValueError: tensors missing, unexpected or of another shape, naming up to five.
    """
    state = model.state_dict()
    tensors = _with_counters_of(state, tensors)
    _check(tensors, state, fresh, origin)
    if share:
        fitting = {key: value.to(state[key].dtype) for key, value in tensors.items()}
        model.load_state_dict(fitting, strict=not fresh, assign=True)
        return
    with torch.no_grad():
        for key, value in tensors.items():
            state[key].copy_(value)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises FileNotFoundError, or ValueError where it is something else."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        with open(path, "rb") as file:
            head = file.read(4)
        # Pickles start with their protocol opcode, torch.save files are zip archives of one.
        if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or head == b"PK\x03\x04":
            raise ValueError(f"{path} is a pickle, which can run code when read; only safetensors are loaded") from None
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def check_replaceable(folder: Path) -> None:
    """ValueError where writing a weights folder would replace a file that is none of this library's."""
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"cannot write a weights folder to {folder}: it is a file")
        return
    held = [name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).exists()]
    with contextlib.suppress(OSError, ValueError):
        if not held or read_json(folder / CONFIG).get("library") == "fapn-zoo":
            return
    with contextlib.suppress(OSError, ValueError):  # a killed write has left card and weights
        if CONFIG not in held and "library_name: fapn-zoo" in (folder / CARD).read_text(encoding="utf-8"):
            return
    raise ValueError(f"{folder} holds {', '.join(held)} of something else than fapn-zoo; move them or write elsewhere")


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    license: str = "unknown",
    metrics: Mapping[str, float] | None = None,
    source: str = "",
    training: Mapping[str, Any] | None = None,
    text: str = "",
) -> Path:
    """Writes a weights folder, all of it or nothing; other files in it stay.

    A process that is killed while it replaces an older model may leave a folder without description, which does not
    load, but never the weights of one model with the description of the other.

    The description holds a few outputs of the model (`fapn_zoo.weights.probe`), for whoever reads the folder later.

    Args:
        folder: made where it does not exist; files of the three names are replaced.
        dtype: floating-point tensors are stored in it; None keeps theirs.
        license: of the weights. metrics: reported values in percent. source: where the weights come from.
        training: settings worth keeping with them. text: further paragraphs of the card.

    Raises:
        ValueError: the folder holds files of the three names that this library has not written.
        NotFinite: weights, outputs or metrics that are NaN or infinite; nothing is written.
        OSError: a file cannot be written, see `fapn_zoo.runtime.files.write_whole`.
    """
    folder = Path(folder)
    check_replaceable(folder)
    tensors = _stored(model, dtype)
    kind = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
    check_finite(tensors.items(), f"{model.spec.name} is not saved to {folder}: its weights{kind}")
    made_with = versions()
    config = {
        "format": FORMAT,
        "library": "fapn-zoo",
        "model": model.spec.to_config(),
        "license": license,
        "metrics": dict(metrics or {}),
        "source": source,
        "training": dict(training or {}),
        "versions": {"fapn_zoo": made_with["fapn-zoo"]} | {name: made_with[name] for name in PACKAGES},
        "probe": _outputs(model, dtype, folder),
    }
    text_of_config = json_text(config, folder / CONFIG) + "\n"
    make_folder(folder)
    card = render_card(config, text).encode()
    files = {WEIGHTS: save(tensors, {"format": "pt"}), CARD: card, CONFIG: text_of_config.encode()}
    with new_folder(folder / "weights", called=folder) as partial:
        for name, data in files.items():
            write_whole(partial / name, lambda file, data=data: file.write(data), sync=True)
        # The card first: whose the weights are is seen by it, where a kill leaves no description.
        move_files(partial, folder, (CARD, WEIGHTS, CONFIG))
    return folder


def _outputs(model: nn.Module, dtype: torch.dtype | None, folder: Path) -> dict[str, Any]:
    """The probe of a model; nothing, and a warning, where it fails: weights worth saving must not be lost for it."""
    try:
        return probe(model, dtype)
    except NotFinite as error:
        raise NotFinite(f"{model.spec.name} is not saved to {folder}: {error}") from None
    except (RuntimeError, ValueError) as error:
        logger.warning("no outputs are stored with the weights, since the model fails on a small image: %s", error)
        return {}


def _stored(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict as it is written: on the CPU, of no shared memory, which safetensors does not take."""
    tensors, memory = {}, set()
    for key, value in model.state_dict().items():
        value = value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else None)
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        tensors[key] = value.clone() if place in memory else value
        memory.add(place)
    return tensors


def adapt_input(tensors: dict[str, Tensor], state: Tensors, saved: int, wanted: int) -> list[str]:
    """Fits the one tensor that reads the image to another number of channels, as timm does for its own weights."""
    from timm.models import adapt_input_conv

    def reads_image(key: str) -> bool:
        shapes = [tuple(side[key].shape) for side in (tensors, state) if key in side]
        return [shape[1:2] for shape in shapes if len(shape) == 4] == [(saved,), (wanted,)]

    keys = [key for key in tensors if key.startswith("backbone.") and reads_image(key)]
    for key in keys:
        if saved == 3:
            tensors[key] = adapt_input_conv(wanted, tensors[key])
        else:  # repeat cyclically, and keep the sum over channels
            tensors[key] = tensors[key][:, torch.arange(wanted) % saved] * (saved / wanted)
    return keys


def _with_counters_of(state: Tensors, tensors: Tensors) -> Tensors:
    """Frozen norms count no batches and others do: where model and tensors differ in that, they still fit."""
    differing = {key for key in tensors.keys() ^ state.keys() if key.endswith(".num_batches_tracked")}
    means = {key: key.replace("num_batches_tracked", "running_mean") for key in differing}
    differing = {key for key, mean in means.items() if mean in tensors and mean in state}
    kept = {key: value for key, value in tensors.items() if key not in differing}
    return kept | {key: torch.zeros_like(state[key]) for key in differing & state.keys()}


def _check(tensors: Tensors, state: Tensors, fresh: Sequence[str], path: str | Path) -> None:
    problems = [f"{key} is missing" for key in state if key not in tensors and key not in fresh]
    problems += [f"{key} is unexpected" for key in tensors if key not in state]
    shapes = {key: (tuple(value.shape), tuple(state[key].shape)) for key, value in tensors.items() if key in state}
    problems += [f"{key} has shape {mine}, the model {its}" for key, (mine, its) in shapes.items() if mine != its]
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:5] + more)}")
