"""Pickles of arrays, read without numpy's unpickling: nothing that a file names is ever imported or called.

The machine is the standard library's, the one written in Python, without the operations that containers of arrays do
not need. A global is looked up in `ADMITTED`, whose entries are stand-ins that keep what they are given, and everything
else is refused before it could mean anything. Operations: PEP 3154, PEP 574 and `pickletools`.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from functools import partial
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

_NEEDED = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT TUPLE TUPLE1 TUPLE2
    TUPLE3 BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8
    SHORT_BINUNICODE BINUNICODE BINUNICODE8 GLOBAL STACK_GLOBAL REDUCE BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    APPEND APPENDS
""".split()
)


def _refuse(machine: Any, name: str) -> None:
    raise RefusedPickle(f"the operation {name}")


_REFUSED = {ord(op.code): partial(_refuse, name=op.name) for op in pickletools.opcodes if op.name not in _NEEDED}


class _Unpickler(pickle._Unpickler):
    """The stack machine of a pickle, with operations of our own where the usual ones believe too much."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        path = f"{module}.{name}"
        if path not in ADMITTED:
            raise RefusedPickle(path)
        return ADMITTED[path]

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PickledArray | PickledDtype):
            target.__setstate__(state)
        elif not isinstance(target, dict):  # attributes of an ordered dictionary have nothing to tell
            raise RefusedPickle(f"a state for a {type(target).__name__}")

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_as_dict([key, value]))

    def set_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_as_dict(items))

    def frame(self) -> None:
        self.read(8)  # a length that only serves to read ahead

    def bytearray(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))  # no memory before there are bytes

    dispatch = pickle._Unpickler.dispatch | _REFUSED
    dispatch |= {pickle.BUILD[0]: build, pickle.SETITEM[0]: set_item, pickle.SETITEMS[0]: set_items}
    dispatch |= {pickle.FRAME[0]: frame, pickle.BYTEARRAY8[0]: bytearray}


# what the machine raises where a pickle is cut off or makes no sense
_DAMAGE = (pickle.UnpicklingError, struct.error, EOFError, LookupError, TypeError, AttributeError)
_DAMAGE += (RecursionError, OverflowError)


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
        return _Unpickler(_Bounded(file, size), encoding="latin1").load()
    except _DAMAGE as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
