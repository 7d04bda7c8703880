"""Pickles of arrays, read without Python's or numpy's unpickling: nothing that a file names is ever imported or called.

`pickletools` only takes a pickle apart into operations. The few that containers of arrays are made of are carried out
here on plain values; a global is looked up in `ADMITTED`, whose entries are stand-ins that keep what they are given,
and everything else is refused before it could mean anything. Operations: PEP 3154, PEP 574 and `pickletools`.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# numpy's type strings that a tensor can be made of
_NUMBERS = {"b1", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
_MOST_DIMENSIONS = 64


class RefusedPickle(ValueError):
    """A pickle asks for what is neither an array nor a plain container; `name` says for what."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}")
        self.name = name


class PickledDtype:
    """What a pickle says of a number type: its string, then (in a state) its byte order."""

    def __init__(self, text: Any = None, align: Any = False, copy: Any = True) -> None:
        self.text, self.order = text, "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise ValueError("a number type has no byte order")
        if any(part is not None for part in state[2:5]):  # subarrays, field names, fields
            self.text = "a record"
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """Raises ValueError for all that is no number, objects first of all."""
        if not isinstance(self.text, str) or self.text not in _NUMBERS:
            raise ValueError(f"an array of dtype {_shown(self.text)}; only numbers can be weights")
        return np.dtype(self.text).newbyteorder(self.order)


class PickledArray:
    """What a pickle says of an array; nothing of it is believed before `tensor`."""

    def __init__(self, shape: Any = None, dtype: Any = None, order: Any = "C", data: Any = None) -> None:
        self.shape, self.dtype, self.order, self.data = shape, dtype, order, data
        self._tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array's state is not (version, shape, dtype, order, data)")
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"

    def tensor(self) -> Tensor:
        """The tensor, made once; the pickle's own bytes are let go. Raises ValueError where they are no array."""
        if self._tensor is None:
            if not isinstance(self.dtype, PickledDtype):
                raise ValueError("an array without data")
            dtype, shape = self.dtype.numpy(), self.shape
            possible = isinstance(shape, tuple) and len(shape) <= _MOST_DIMENSIONS
            if not possible or not all(type(side) is int and 0 <= side < 2**63 for side in shape):
                raise ValueError("an array whose shape is none")
            data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
            if not isinstance(data, bytes | bytearray):
                raise ValueError(f"an array whose data is a {type(data).__name__}")
            if len(data) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"an array of shape {shape} and dtype {dtype} with {len(data)} bytes")
            array = np.frombuffer(data, dtype).reshape(shape, order=self.order)
            self._tensor = torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))
            self.data = data = None
        return self._tensor


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if kind is not PickledArray:
        raise RefusedPickle("an array of a class of its own")
    return PickledArray()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    return PickledArray(shape, dtype, "F" if order == "F" else "C", data)


def _scalar(dtype: Any, data: Any = None) -> PickledArray:
    return PickledArray((), dtype, "C", data)


def _encode(text: Any, encoding: Any = None) -> str:
    """How Python 3 writes bytes in protocol 2. They stay text until their tensor is made, to exist once only."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedPickle(f"the codec {_shown(encoding)}")
    return text


def _no_bytes(*arguments: Any) -> bytes:
    """How Python 3 writes an empty string of bytes in protocol 2."""
    if arguments:
        raise RefusedPickle("bytes of something")
    return b""


def _ordered_dict(items: Any = ()) -> dict:
    return _as_dict([part for item in items for part in item])


def _as_dict(items: list[Any]) -> dict:
    """Keys and values in turns -> a dict. Nested tuples are no keys: hashing them can take for ever."""
    keys, values = items[::2], items[1::2]
    if not all(isinstance(key, str | int) for key in keys):
        raise ValueError("a dictionary has keys that are no names")
    return dict(zip(keys, values, strict=True))


def _shown(value: Any) -> str:
    """A short text for an error; containers can nest so that their full text has no end."""
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"


# Every global that a pickle of arrays names, in numpy 1 and numpy 2, and what is called in its stead.
ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": _ordered_dict,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}

_VALUES = frozenset("BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES".split())
_VALUES |= frozenset("BINBYTES BINBYTES8 BYTEARRAY8 SHORT_BINUNICODE BINUNICODE BINUNICODE8".split())
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_MARK = object()


class _Machine:
    """The stack and the memo of a pickle, and what its operations do to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                self._global(name, argument)
            elif name in ("REDUCE", "BUILD"):
                self._call(name)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name not in ("PROTO", "FRAME"):
                self._collect(name)
        raise ValueError("it ends too early")

    def _global(self, name: str, argument: Any) -> None:
        if name == "STACK_GLOBAL":
            parts = [self.stack.pop(), self.stack.pop()][::-1]
        else:
            parts = argument.split(" ", 1)
        if not all(isinstance(part, str) for part in parts):
            raise RefusedPickle("a global without a name")
        path = ".".join(parts)
        if path not in ADMITTED or name == "INST":
            raise RefusedPickle(path)
        self.stack.append(ADMITTED[path])

    def _call(self, name: str) -> None:
        argument, target = self.stack.pop(), self.stack.pop()
        if name == "REDUCE":
            if not any(target is function for function in ADMITTED.values()):
                raise RefusedPickle(f"a call of a {type(target).__name__}")
            self.stack.append(target(*argument))
            return
        if isinstance(target, PickledArray | PickledDtype):
            target.__setstate__(argument)
        elif not isinstance(target, dict):  # attributes of an ordered dictionary have nothing to tell
            raise RefusedPickle(f"a state for a {type(target).__name__}")
        self.stack.append(target)

    def _collect(self, name: str) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            self._container(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            self._container(dict).update(_as_dict(items))
        else:
            raise RefusedPickle(f"the operation {name}")

    def _since_mark(self) -> list[Any]:
        index = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK)
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def _container(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise RefusedPickle(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


class _Bounded:
    """A file of which no more is asked than there is: lengths in a damaged pickle may exceed all memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.tell, self.readline = file, size, file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))


def load_arrays(file: BinaryIO, size: int) -> Any:
    """The containers and plain values of a pickle, with a `PickledArray` for every array.

    Args:
        file: at the beginning of a pickle of protocol 2 to 5, also one that Python 2 wrote (its strings are latin-1).
        size: of the file in bytes.

    Raises:
        RefusedPickle: a global, call or operation that arrays have no need of. ValueError: a damaged pickle.
    """
    try:
        return _Machine().run(_Bounded(file, size))
    except (LookupError, StopIteration, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
