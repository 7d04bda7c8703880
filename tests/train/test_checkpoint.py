"""Which checkpoints are kept, and how damage shows."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fapn_zoo.train import checkpoint
from fapn_zoo.train.checkpoint import Checkpoints, latest_checkpoint, load_checkpoint
from fapn_zoo.train.log import add_row

pytestmark = pytest.mark.unit


def held(out: Path) -> list[int]:
    """The steps of the checkpoints; nothing else may be in their folder."""
    names = os.listdir(out / "checkpoint")
    assert all(name.startswith("step-") for name in names), names
    return sorted(int(name[5:]) for name in names)


def state(step: int) -> dict[str, Any]:
    return {"x": torch.full((500,), float(step)), "none": None, "n": [1, "a"]}


def run_to(out: Path, steps: int, scores: dict[int, float | None] | None = None) -> Checkpoints:
    """What a run does: a checkpoint, then the scores of its step."""
    made = Checkpoints(out)
    for step in range(1, steps + 1):
        made.save(step, state(step))
        if scores and step in scores:
            add_row(out / "metrics.csv", step, {"miou": scores[step], "other": 1.0 - (scores[step] or 0)})
    return made


@pytest.mark.parametrize(
    "scores, kept",
    [
        ({}, [7, 8]),
        ({2: 0.5, 5: 0.4, 7: 0.3}, [2, 7, 8]),
        ({2: 0.5, 7: 0.6}, [7, 8]),
        ({2: 0.5, 4: 0.5}, [4, 7, 8]),  # of equals the later
        ({3: None}, [7, 8]),
        ({1: -0.5, 3: None}, [1, 7, 8]),
    ],
)
def test_the_last_two_and_the_best_stay(tmp_path: Path, scores: dict[int, float | None], kept: list[int]) -> None:
    run_to(tmp_path, 8, scores)
    assert held(tmp_path) == kept
    last = latest_checkpoint(tmp_path / "checkpoint")
    assert last.name == "step-00000008" and torch.equal(load_checkpoint(last)["x"], state(8)["x"])
    assert latest_checkpoint(tmp_path / "none") is None


def damages() -> dict[str, Callable[[bytes], bytes]]:
    def flip(place: float) -> Callable[[bytes], bytes]:
        def change(data: bytes) -> bytes:
            at = int(place * (len(data) - 1))
            return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

        return change

    cuts = {f"cut at {part}": lambda data, part=part: data[: int(part * len(data))] for part in (0, 0.1, 0.5, 0.99)}
    flips = {f"flipped at {place}": flip(place) for place in (0, 0.5, 0.7)}
    return cuts | flips | {"one byte cut": lambda data: data[:-1]}


@pytest.mark.parametrize("name", damages())
def test_damage_is_found_and_the_older_one_taken_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    run_to(tmp_path, 3)
    folder = tmp_path / "checkpoint"
    damaged = folder / "step-00000003" / "state.pt"
    damaged.write_bytes(damages()[name](damaged.read_bytes()))
    assert latest_checkpoint(folder) == folder / "step-00000002"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().startswith(
        f"{folder}/step-00000003/state.pt is not a readable checkpoint ("
    )
    assert record.getMessage().endswith(f"; going on from the older {folder}/step-00000002")


def test_any_changed_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """A torch file has gaps between its parts, in which nothing is stored."""
    run_to(tmp_path, 1)
    path = tmp_path / "checkpoint/step-00000001"
    data, whole = (path / "state.pt").read_bytes(), load_checkpoint(path)
    begin = data.index(whole["x"].numpy().tobytes())
    for place in range(0, len(data), 7):
        (path / "state.pt").write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}/state.pt is not a readable checkpoint (") and "\n" not in str(error)
        else:
            assert torch.equal(found.pop("x"), whole["x"]) and found == {k: v for k, v in whole.items() if k != "x"}
            assert not begin <= place < begin + 2000


def test_a_missing_state_is_damage_and_a_checksum_of_an_earlier_version_is_none(tmp_path: Path) -> None:
    run_to(tmp_path, 3)
    last = tmp_path / "checkpoint/step-00000003"
    (last / "state.json").write_text("{}")
    assert latest_checkpoint(tmp_path / "checkpoint") == last
    (last / "state.pt").unlink()
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step-00000002"


def test_where_none_is_whole_that_is_one_line(tmp_path: Path) -> None:
    run_to(tmp_path, 3)
    for path in (tmp_path / "checkpoint").glob("*/state.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    words = r"step-00000003/state.pt is not a readable checkpoint \(BadZipFile: .*\), and none of 1 older "
    with pytest.raises(ValueError, match=rf"{words}.*; start anew with overwrite=true or another out=$"):
        latest_checkpoint(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint/step-00000002")
    with pytest.raises(ValueError, match=r"\), and there is no other; start anew"):
        latest_checkpoint(tmp_path / "checkpoint")


def test_later_ones_are_damaged_and_go_once_a_run_goes_on(tmp_path: Path) -> None:
    run_to(tmp_path, 4)
    made = Checkpoints(tmp_path)
    made.go_on(tmp_path / "checkpoint/step-00000003")
    assert held(tmp_path) == [3]
    made.save(3, {"x": None})  # already there: left alone
    made.save(4, state(4))
    assert held(tmp_path) == [3, 4]
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint/step-00000003")["x"], state(3)["x"])


def test_steps_of_more_digits_come_later(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    for step in (99_999_998, 99_999_999, 100_000_000):
        made.save(step, state(step))
    assert held(tmp_path) == [99_999_999, 100_000_000]
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step-100000000"


def test_leavings_go_before_the_next_write_and_other_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    for name in (".step-00000002.4711.tmp", ".step-00000002.0123abcd.part", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.pt").write_text("half")
    real, seen = torch.save, []

    def save(*arguments: Any) -> None:
        seen.append({name for name in os.listdir(folder) if name[0] != "." or "4711" in name or "0123abcd" in name})
        real(*arguments)

    monkeypatch.setattr(torch, "save", save)
    Checkpoints(tmp_path).save(3, state(3))
    assert seen == [{"mine"}]
    assert sorted(os.listdir(folder)) == ["mine", "step-00000003"]


def test_whatever_torch_makes_of_an_error_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_to(tmp_path, 1)
    monkeypatch.setattr(checkpoint.torch, "save", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match=r"^cannot write .*/step-00000002/state.pt: disk full$"):
        made.save(2, state(2))
    assert held(tmp_path) == [1]
