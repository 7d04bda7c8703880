"""Containers of weights: recognised by content, read without running anything, refused in one line."""

from __future__ import annotations

import pickle
import random
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fapn_zoo.convert import read_checkpoint

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),  # in pickles damaged on purpose
]

ARRAYS = {
    "plain": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    "sliced": np.arange(20, dtype=np.float64)[::3],
    "big_endian": np.arange(5, dtype=">f4"),
    "half": np.array([0.5, 2.0], dtype=np.float16),
    "int": np.array([[1, -2]], dtype=np.int64),
    "byte": np.array([0, 255], dtype=np.uint8),
    "bool": np.array([True, False]),
    "no dimension": np.array(3.5, dtype=np.float32),
    "nothing": np.zeros((0, 4), dtype=np.float32),
    "large": np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32),
}
TENSORS = {
    key: torch.from_numpy(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("="))).reshape(a.shape)
    for key, a in ARRAYS.items()
}


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = TENSORS) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape, key
        assert torch.equal(found[key], tensor), key


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 600 + len(str(path)), text
    return text.replace(str(path), "FILE")


# pickles


def renamed(data: bytes) -> bytes:
    """A pickle of numpy 2 under the module names of numpy 1. The frames' lengths are then wrong, which is no matter."""
    data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
    return data


@pytest.mark.parametrize("numpy", [1, 2])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles(tmp_path: Path, protocol: int, numpy: int) -> None:
    data = pickle.dumps({"model": ARRAYS, "__author__": "someone", "matching_heuristics": True}, protocol)
    if numpy == 1:
        data = renamed(data)
        assert b"numpy.core." in data and b"_core" not in data
    (tmp_path / "model.pkl").write_bytes(data)
    check(read_checkpoint(tmp_path / "model.pkl"))


@pytest.mark.parametrize("protocol", [2, 5])
def test_other_forms(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "any.name"
    scalars = {"plain": np.float32(2.5), "step": np.int64(7)}
    for content in (
        ARRAYS,
        OrderedDict(ARRAYS),
        {"model": OrderedDict(ARRAYS)},
        {"state_dict": ARRAYS, "epoch": 3, "none": None},
        {"model_ema": ARRAYS, "note": ["é", 1.5, (1, (2,)), b"bytes", -1, 2**70]},
        {"model": ARRAYS, "scores": {"miou": np.float64(0.4), "names": np.array(["a", "b"]), "o": np.array([{}])}},
    ):
        path.write_bytes(pickle.dumps(content, protocol))
        check(read_checkpoint(path))
    path.write_bytes(pickle.dumps(scalars, protocol))
    found = read_checkpoint(path)
    assert found["plain"].dtype == torch.float32 and found["step"].dtype == torch.int64
    assert found["plain"].shape == () and (found["plain"].item(), found["step"].item()) == (2.5, 7)


def test_one_array_under_two_names(tmp_path: Path) -> None:
    array = np.ones(3, dtype=np.float32)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": array, "b": array}))
    found = read_checkpoint(tmp_path / "m.pkl")
    assert found["a"].data_ptr() == found["b"].data_ptr()


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text  # Python 2's str


def python2_pickle(data: bytes, shape: tuple[int, int], dtype: bytes = b"f4") -> bytes:
    """What cPickle of Python 2 wrote for `{"model": {"w": array}}` with numpy 1, operation by operation."""
    side = b"".join(b"K" + bytes([n]) for n in shape)
    return (
        b"\x80\x02}q\x00" + short(b"model") + b"q\x01}q\x02" + short(b"w") + b"q\x03"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85" + short(b"b") + b"\x87R"
        b"(K\x01" + side + b"\x86cnumpy\ndtype\n" + short(dtype) + b"K\x00K\x01\x87R"
        b"(K\x03" + short(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb" + b"s" + b"s."
    )


ONE = python2_pickle(b"1234", (1, 1))


def test_python_2(tmp_path: Path) -> None:
    array = np.array([[1.5, -2.0, 3e-9], [np.pi, 255.0, 0.0]], dtype="<f4")
    (tmp_path / "old.pkl").write_bytes(python2_pickle(array.tobytes(), (2, 3)))
    check(read_checkpoint(tmp_path / "old.pkl"), {"w": torch.from_numpy(array)})


@pytest.mark.parametrize(
    "data, words",
    [
        (python2_pickle(b"12345678", (2, 2)), "an array of shape (2, 2) and dtype float32 with 8 bytes under 'model'"),
        (python2_pickle(b"12345678", (1, 1), b"O8"), "an array of dtype 'O8'; only numbers can be weights"),
        (python2_pickle(b"12345678", (1, 1), b"V8"), "an array of dtype 'V8'"),
        (python2_pickle(b"12345678", (1, 1), b"f4,f4"), "an array of dtype 'f4,f4'"),
        (python2_pickle(b"12345678", (1, 1), b"M8"), "an array of dtype 'M8'"),
        (ONE.replace(b"K\x01K\x01\x86", b"K\x01J\xff\xff\xff\xff\x86"), "whose shape is none"),
        (ONE.replace(b"K\x01K\x01\x86", b"K\x01G?\xf0\0\0\0\0\0\0\x86"), "whose shape is none"),
        (ONE.replace(short(b"b") + b"\x87R", short(b"b") + b"\x87R(K\x01tb"), "damaged"),
        (pickle.dumps({"model": {"w": [1.0, 2.0]}}), "holds a list under 'model', as 'w'; expected plain tensors"),
        (pickle.dumps({"model": {"w": 1.0}}), "holds a float under 'model', as 'w'"),
        (pickle.dumps({"model": {3: ARRAYS["plain"]}}), "holds a PickledArray under 'model', as 3"),
        (pickle.dumps({"model": {"w": np.array([[], {}], dtype=object)}}), "an array of dtype 'O8'"),
        (pickle.dumps({"model": {"w": np.array(["text"])}}), "an array of dtype 'U4'"),
        (pickle.dumps({"model": {"w": np.zeros(2, "f4,i4")}}), "an array of dtype 'a record'"),
        (pickle.dumps({"model": {}}), "holds no tensors under 'model'"),
        (pickle.dumps({}), "holds no tensors"),
        (pickle.dumps([ARRAYS]), "holds a list, not names with tensors"),
        (pickle.dumps(ARRAYS["plain"]), "holds a PickledArray, not names with tensors"),
        (pickle.dumps({"model": ARRAYS, "model_ema": ARRAYS}), "holds several sets of weights (model, model_ema)"),
        (pickle.dumps({"epoch": 3}), "holds a int, as 'epoch'"),
        (pickle.dumps({("a", "b"): 1}), "a dictionary has keys that are no names"),
        (pickle.dumps({"w": {1, 2}}), "is refused: it asks for the operation EMPTY_SET"),
        (pickle.dumps({"w": torch.ones(2)}), "is refused: it asks for torch._utils._rebuild_tensor_v2"),
        (pickle.dumps({"w": np.ma.masked_array([1.0])}), "is refused: it asks for numpy.ma._mareconstruct"),
        (pickle.dumps({"w": np.random.default_rng(0)}), "is refused: it asks for numpy.random._pickle"),
        (pickle.dumps({"w": Path("x")}), "is refused: it asks for pathlib."),
    ],
    ids=range(26),
)
def test_pickles_that_are_no_weights(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    assert words in refusal(tmp_path / "x.pkl").replace("numpy.ma.core._mareconstruct", "numpy.ma._mareconstruct")


# torch files


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pth"
    tensors = {key: torch.randn(3, 4) for key in "ab"} | {"half": torch.ones(2).bfloat16(), "n": torch.tensor(3)}
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    for content in (
        tensors,
        {"model": OrderedDict(tensors)},
        {"state_dict": tensors, "epoch": 3},
        {"model": tensors, "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 3}, "iteration": 7},
        {"model": tensors, "best": np.float64(0.5), "history": np.arange(3.0), "counts": np.array([1, 2])},
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        check(read_checkpoint(path), tensors)
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)  # parameters, metadata
    found = read_checkpoint(path)
    check(found, {k: v.detach() for k, v in network.state_dict().items()})
    assert not any(value.requires_grad for value in found.values())


def test_numpy_arrays_in_a_torch_file(tmp_path: Path) -> None:
    torch.save({"model": ARRAYS}, tmp_path / "m.pth")
    check(read_checkpoint(tmp_path / "m.pth"))
    torch.save({"model": {"w": np.array([{}])}}, tmp_path / "m.pth")
    assert "an array of dtype 'O8'" in refusal(tmp_path / "m.pth")


def test_no_stand_in_is_left_behind(tmp_path: Path) -> None:
    torch.save({"model": ARRAYS}, tmp_path / "m.pth")
    read_checkpoint(tmp_path / "m.pth")
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(tmp_path / "m.pth", weights_only=True)


def test_tensors_that_are_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    for tensor in (torch.ones(2, 2).to_sparse(), torch.empty(2, device="meta")):
        torch.save({"w": tensor}, path)
        assert "holds a Tensor, as 'w'; expected plain tensors" in refusal(path)


def test_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.pkl")  # the name says nothing
    check(read_checkpoint(tmp_path / "weights.pkl"))


# what is none of them


def zip_of(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty; fetch it again"),
        (b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>", "a web page, not a checkpoint"),
        (b"\n  <html lang='en'>", "is a web page"),
        (b"hello", "is no checkpoint: neither safetensors, nor a torch file, nor a pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "nor a pickle of protocol 2 to 5 (it begins with b'cos"),
        (b"\x80\x01K\x01.", "is no checkpoint"),
        (b"\x80\x04", "is a damaged or cut-off pickle; fetch it again"),
        (b"PK\x03\x04" + bytes(100), "is a damaged or cut-off torch file; fetch it again"),
        (b"\x1f\x8b\x08" + bytes(50), "is no checkpoint"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "is damaged, cut off or holds more than weights"),
        (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[9],"data_off', "is no whole safetensors file"),
    ],
)
def test_no_container(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    assert words in refusal(tmp_path / "x.pkl")


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint file {str(path)!r}")):
            read_checkpoint(path)


def test_archives_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    assert "no torch file: it has not one data.pkl" in refusal(zip_of(path, {"model_final.pkl": b"x"}))
    assert "a TorchScript program" in refusal(zip_of(path, {"m/data.pkl": b"x", "m/constants.pkl": b"x"}))
    bomb = zip_of(path, {"m/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    assert "is a packed zip archive, which torch.save does not write; nothing was unpacked" in refusal(bomb)


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    """A zip bomb without compression: many entries of the directory name one place in the file."""
    path = zip_of(tmp_path / "m.pth", {"m/data.pkl": b"x", "m/data/0": bytes(10_000)})
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    entry = data[data.rindex(b"PK\x01\x02") : end]
    more = b"".join(entry.replace(b"m/data/0", b"m/data/%d" % n) for n in range(1, 10))
    tail = data[end : end + 8] + struct.pack("<HHII", 11, 11, end - start + len(more), start) + b"\0\0"
    path.write_bytes(data[:end] + more + tail)
    assert len(zipfile.ZipFile(path).infolist()) == 11
    assert "is a packed zip archive" in refusal(path)


# damage


def test_one_bit_of_a_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4000)) + 2000] ^= 1
    path.write_bytes(data)
    assert torch.load(path)["w"].any(), "torch itself does not see it"
    assert "is a damaged torch file; fetch it again (checksum of m/data/0)" in refusal(path)


def small_files(folder: Path) -> dict[str, bytes]:
    model = {"model": {"w": np.ones((2, 2), np.float32), "b": np.arange(3)}, "note": "x"}
    tensors = {"model": {"w": torch.ones(2, 2), "b": torch.arange(3)}, "n": np.float32(1)}
    torch.save(tensors, folder / "a")
    torch.save(tensors, folder / "b", _use_new_zipfile_serialization=False)
    save_file(tensors["model"], folder / "c")
    files = {name: (folder / name).read_bytes() for name in "abc"}
    return files | {f"pickle{protocol}": pickle.dumps(model, protocol) for protocol in (2, 4, 5)}


@pytest.mark.parametrize("kind", ["a", "b", "c", "pickle2", "pickle4", "pickle5"])
def test_cut_off_anywhere(tmp_path: Path, kind: str) -> None:
    data = small_files(tmp_path)[kind]
    path = tmp_path / "x"
    path.write_bytes(data)
    assert set(read_checkpoint(path)) == {"w", "b"}
    for length in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:length])
        refusal(path)


@pytest.mark.parametrize("kind", ["a", "b", "c", "pickle2", "pickle4", "pickle5"])
def test_any_damage_is_an_error_of_one_line_or_other_numbers(tmp_path: Path, kind: str) -> None:
    data = small_files(tmp_path)[kind]
    path, rng = tmp_path / "x", random.Random(0)
    for _ in range(150 if kind in "ab" else 600):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(value, torch.Tensor) for value in read_checkpoint(path).values())
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_lengths_beyond_the_file_ask_for_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    for data in (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b".",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    ):
        path.write_bytes(data)
        refusal(path)


def test_nested_tuples_take_no_time(tmp_path: Path) -> None:
    """Each holds the one before twice: as a key, a shape or in an error's text that would be 2**60 elements."""
    nested = b"K\x01" + b"".join(b"q\x01h\x01\x86" for _ in range(60))
    path = tmp_path / "x.pkl"
    for data in (
        b"\x80\x02}" + nested + b"K\x01s.",
        b"\x80\x02ccollections\nOrderedDict\n]" + nested + b"K\x01\x86a\x85R.",
        b"\x80\x02c_codecs\nencode\n" + nested + nested + b"\x86R.",
        ONE.replace(b"K\x01K\x01\x86", nested),
        ONE.replace(short(b"f4"), nested),
    ):
        path.write_bytes(data)
        refusal(path)
