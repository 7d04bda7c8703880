"""Files of weights of any container -> tensors by name; nothing in them is ever run.

The container is recognised by content, not by name. Torch files go through `torch.load(weights_only=True)`; plain
pickles of numpy arrays, detectron2's `.pkl`, through a reader of their own (`pickle_arrays`).
"""

from __future__ import annotations

import contextlib
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fapn_zoo.convert.pickle_arrays import ADMITTED, PickledArray, RefusedPickle, load_arrays
from fapn_zoo.weights.folder import read_tensors

# the number that torch.save began its files with before they were zip archives, as a pickle of any protocol
LEGACY_TORCH = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
OPERATIONS = {ord(operation.code): operation.name for operation in pickletools.opcodes}
# where programs keep the weights of a checkpoint, beside the state of the training
WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "ema_state_dict", "state_dict_ema")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU.

    Args:
        path: safetensors; a torch file, zip or older; or a pickle of numpy arrays (protocol 2 to 5). Weights are all
            there is in it, or stand under one of `WEIGHT_KEYS` beside the state of a training.

    Raises:
        FileNotFoundError: no such file. ValueError: no such container, a damaged one, one that asks for anything but
            arrays, or one whose weights cannot be told; a line that names the file and says what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {str(path)!r}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; fetch it again")
    if head.startswith(b"PK\x03\x04"):
        content = _read_torch_zip(path)
    elif LEGACY_TORCH.match(head):
        content = _torch_load(path, mapped=False)
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        content = _read_pickle(path)
    elif 8 + int.from_bytes(head[:8], "little") <= size and head[8:9] == b"{":
        content = read_tensors(path)
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        reason = "Google Drive sends one instead of a file that too many people have fetched: try again later"
        raise ValueError(f"{path} is a web page, not a checkpoint; {reason}")
    else:
        known = "neither safetensors, nor a torch file, nor a pickle of protocol 2 to 5"
        raise ValueError(f"{path} is no checkpoint: {known} (it begins with {head[:8]!r}); nothing was run")
    return _weights(content, path)


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return load_arrays(file, path.stat().st_size)
    except RefusedPickle as error:
        raise ValueError(f"{path} is refused: {error}, which weights do not need; nothing was run") from None
    except ValueError as error:
        raise ValueError(f"{path} is a damaged or cut-off pickle; fetch it again ({_line(error)})") from None


def _read_torch_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            problem = _problem(archive, path.stat().st_size)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is a damaged or cut-off torch file; fetch it again ({_line(error)})") from None
    if problem is not None:
        raise ValueError(f"{path} is {problem}")
    return _torch_load(path, mapped=True)


def _problem(archive: zipfile.ZipFile, size: int) -> str | None:
    """What keeps an archive of `size` bytes from torch, which would map it without a look at its checksums."""
    members = archive.infolist()
    names = [member.filename.rpartition("/")[2] for member in members]
    if "constants.pkl" in names:
        return "a TorchScript program, not a file of weights; nothing was run"
    if names.count("data.pkl") != 1:
        return "a zip archive, but no torch file: it has not one data.pkl; unpack it first"
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        return "a packed zip archive, which torch.save does not write; nothing was unpacked"
    damaged = archive.testzip()
    return None if damaged is None else f"a damaged torch file; fetch it again (checksum of {damaged})"


def _torch_load(path: Path, *, mapped: bool) -> Any:
    """`torch.load` with weights only; once more with stand-ins for numpy's arrays where the training state has some."""
    stand_ins = torch.serialization.safe_globals([(function, name) for name, function in ADMITTED.items()])
    for extra in (contextlib.nullcontext(), stand_ins):
        try:
            with extra, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other protocols, before they are refused
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError... for the same mishap
            asked = error.name if isinstance(error, RefusedPickle) else None
            if match := re.search(r"GLOBAL (\S+)", str(error)):
                asked = match[1] if "." in match[1] else f"builtins.{match[1]}"  # torch leaves that out
            elif match := re.search(r"Unsupported operand (\d+)", str(error)):
                asked = f"the operation {OPERATIONS.get(int(match[1]), match[1])}"
            if asked in ADMITTED and extra is not stand_ins:
                continue
            reason = f"damaged, cut off or holds more than weights; nothing was run ({_line(error)})"
            if asked:
                reason = f"refused: it asks for {asked}, which weights do not need; nothing was run"
            raise ValueError(f"{path} is {reason}") from None


def _weights(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not names with tensors")
    if not content:
        raise ValueError(f"{path} holds no tensors")
    named = [key for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)]
    if len(named) > 1:
        raise ValueError(f"{path} holds several sets of weights ({', '.join(named)}); keep one of them in a file")
    place = f" under {named[0]!r}" if named else ""
    state = content[named[0]] if named else content
    tensors = {}
    for key, value in state.items():
        try:
            tensor = value.tensor() if isinstance(value, PickledArray) else value
        except ValueError as error:
            raise ValueError(f"{path} holds {error}{place}, as {key!r}; nothing was run") from None
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_quantized
        if not isinstance(key, str) or not plain or tensor.device.type != "cpu":
            raise ValueError(f"{path} holds a {type(value).__name__}{place}, as {key!r}; expected plain tensors")
        tensors[key] = tensor.detach()
    if not tensors:
        raise ValueError(f"{path} holds no tensors{place}")
    return tensors


def _line(error: BaseException) -> str:
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    text = found[1] if found else (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:200] + "..."
