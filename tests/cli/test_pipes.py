"""Output that goes into a pipe: nobody reads it any more, or a file keeps it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fapn_zoo.cli import PIPE_CLOSED

COMMAND = [sys.executable, "-m", "fapn_zoo.cli"]
BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
pytestmark = pytest.mark.unit


def closed(words: list[str], env: dict[str, str] = BUFFERED) -> tuple[int, bytes]:
    """Exit code and stderr of a verb whose output nobody reads from the start."""
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        process.stdout.close()
        err = process.stderr.read()
    return process.returncode, err


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "perpixel_fpn"],  # so short that it waits in the buffer until the verb is done
        ["train", "--help"],
        ["recipes"],
        ["info", "--spec", "maskformer_fpn_resnet50_ade20k"],
    ],
    ids=" ".join,
)
def test_a_reader_who_leaves_ends_the_verb_quietly(words: list[str]) -> None:
    assert closed(words) == (PIPE_CLOSED, b"")


def test_the_same_without_a_buffer() -> None:
    assert closed(["list"], BUFFERED | {"PYTHONUNBUFFERED": "1"}) == (PIPE_CLOSED, b"")


def test_a_reader_who_leaves_in_the_middle() -> None:
    """The output is longer than what a pipe holds, so that the verb is still writing when `head` ends."""
    code = "from fapn_zoo.cli import main, models; models.list_models = lambda *_, **__: ['perpixel_fpn'] * 20_000"
    words = [sys.executable, "-c", f"{code}; raise SystemExit(main(['list']))"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"perpixel_fpn ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == PIPE_CLOSED


def test_an_error_that_nobody_reads() -> None:
    with subprocess.Popen([*COMMAND, "list", "nothing*"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.close()
    assert process.returncode == PIPE_CLOSED


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, env=BUFFERED)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write the output: No space left on device\n")


def test_a_reader_who_stays_gets_everything() -> None:
    done = subprocess.run([*COMMAND, "list"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "perpixel_fapn_resnet18_slim_camvid " in done.stdout


def test_start_up_imports_neither_torch_nor_numpy() -> None:
    for words in (
        ["--help"],
        ["list"],
        ["train", "--help"],
        ["recipes"],
        ["info", "--spec", "maskformer_fapn_swin_l_ade20k"],
    ):
        code = f"import sys; from fapn_zoo.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
        code += "assert not {'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
