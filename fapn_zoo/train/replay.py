"""The batch on which a run lost its numbers: kept with all it takes to show it again, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fapn_zoo.model import build
from fapn_zoo.modules.heads.outputs import HELD, Targets
from fapn_zoo.runtime.files import write_whole
from fapn_zoo.runtime.processes import on_cpu
from fapn_zoo.runtime.tables import some
from fapn_zoo.tasks.targets import Batch
from fapn_zoo.train.setup import part_losses, train_mode
from fapn_zoo.weights.finite import faults, named_tensors, told
from fapn_zoo.zoo.parts import HEADS, load_part
from fapn_zoo.zoo.spec import ModelSpec

FILE = "bad_batch.safetensors"
IN = "targets."  # before the names of tensors of the truth


def keep_batch(path: Path, run: Any, batch: Batch, totals: Mapping[str, Tensor], seed: int, error: str) -> None:
    """Writes what a step of a `Run` computed with: images, truth, weights, seed, counts and the description.

    Batch norms have seen the batch already, which changes nothing in training.
    """
    targets = {name: getattr(batch.targets, name) for name in HELD}
    tensors = {"images": batch.images, "sizes": batch.sizes} | dict(named_tensors(targets, IN[:-1]))
    tensors |= {f"model.{key}": value for key, value in run.plain.state_dict().items()}
    tensors |= {f"totals.{name}": value for name, value in totals.items()}
    frozen = [name for name, parameter in run.plain.named_parameters() if not parameter.requires_grad]
    facts = {"error": error, "step": run.step, "seed": seed, "size": run.micro_batch or len(batch.names)}
    facts |= {"names": batch.names, "model": run.plain.spec.to_config(), "options": run.parts.options, "frozen": frozen}
    facts |= {"amp": run.accelerator.mixed_precision, "ignore_index": batch.targets.ignore_index}
    facts["channels_last"] = run.settings.channels_last
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(tensors, {"fapn_zoo": json.dumps(facts)})
    write_whole(path, lambda file: file.write(data))


def replay(folder: str | Path) -> Iterator[str]:
    """Computes the kept step again, on a GPU if there is one, and says line by line where numbers are lost.

    Args:
        folder: OUT of a training, or the file itself.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is none that a run has written.
    """
    path = Path(folder) / FILE if Path(folder).is_dir() else Path(folder)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: a training writes it when its loss or gradient is not finite")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["fapn_zoo"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        model, batch = _model(facts, tensors), _batch(facts, tensors)
    except Exception as error:
        raise ValueError(f"{path} is no batch that a run has kept: {type(error).__name__}: {error}") from error
    yield f"{path}: {facts['error']}"
    if found := faults(model.named_parameters()):
        yield f"the weights hold {told(found)} before the step"
    accelerator = Accelerator(mixed_precision=facts["amp"], cpu=on_cpu())
    loss = load_part(HEADS[model.spec.head].loss).of(model, **facts["options"]).to(accelerator.device)
    running = accelerator.prepare(model)
    totals = {key[7:]: tensor.to(accelerator.device) for key, tensor in tensors.items() if key.startswith("totals.")}
    torch.manual_seed(facts["seed"])
    layout = torch.channels_last if facts["channels_last"] else torch.contiguous_format
    for part in batch.to(accelerator.device).parts(facts["size"]):
        yield from _shown(lambda p=part: part_losses(running, model.data, loss, p, totals, layout), model, part)
    lost = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    yield f"gradients that are not finite: {some(lost)}" if lost else "all gradients are finite"


def _model(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    model = build(ModelSpec.from_config(facts["model"]))
    model.load_state_dict({key[6:]: tensor for key, tensor in tensors.items() if key.startswith("model.")})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in facts["frozen"])
    train_mode(model)
    return model


def _batch(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Batch:
    truth = {key.removeprefix(IN): tensor for key, tensor in tensors.items() if key.startswith(IN)}
    held = {name: truth[name] for name in ("labels", "seeds") if name in truth}
    for name in ("classes", "masks", "boxes"):
        held[name] = tuple(truth[f"{name}.{n}"] for n in range(len(facts["names"])) if f"{name}.{n}" in truth)
    targets = Targets(**held, ignore_index=facts["ignore_index"])
    return Batch(tensors["images"], tensors["sizes"], targets, tuple(facts["names"]))


def _shown(losses: Callable[[], Mapping[str, Tensor]], model: nn.Module, part: Batch) -> Iterator[str]:
    """What one micro-batch gives, and the first module that makes numbers that are none of such that are."""
    first: list[str] = []

    def look(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not first and (found := faults(named_tensors(output, "output"))) and not faults(named_tensors(inputs)):
                first.append(f"{name or 'the model'} ({type(module).__name__}) makes {told(found)} of finite inputs")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        found = losses()
        found["loss"].backward()
        yield f"{', '.join(part.names)}: {', '.join(f'{name} {value.item():.6g}' for name, value in found.items())}"
    except ValueError as error:
        yield f"{', '.join(part.names)}: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    yield from first
