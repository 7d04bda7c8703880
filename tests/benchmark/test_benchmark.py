"""Benchmarks measure what they say: order, parts, memory and work; and leave process and models as they were."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fapn_zoo
from fapn_zoo.benchmark import REALTIME, append_csv, benchmark, inference, parse_size, render
from fapn_zoo.benchmark import run as run_module
from fapn_zoo.benchmark.report import CSV_COLUMNS
from fapn_zoo.benchmark.run import count, deform_conv_flops, flop_counter
from fapn_zoo.cli import main
from fapn_zoo.modules.deform_conv.conv import available_backends
from fapn_zoo.runtime import device as device_module
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.unit

TINY = {"backbone": "resnet10t", "backbone_channels": (8, 8, 16, 16), "neck_out_channels": 16, "num_classes": 3}
SIZE = (64, 96)


def tiny(neck: str) -> nn.Module:
    groups = {"neck_deform_groups": 2} if neck == "fapn" else {}
    return fapn_zoo.create_model(f"perpixel_{neck}", **TINY, **groups)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {neck: str(tiny(neck).save(tmp_path / neck)) for neck in ("fapn", "fpn")}


# Work ---------------------------------------------------------------------------------------------------------------


def test_operations_of_a_deformable_convolution() -> None:
    # 2 images, 4 -> 6 channels in 2 groups, 3x3 taps, 5x7 pixels: products of 2 channels each, and 4 or 5 per sample
    pixels, taps = 2 * 5 * 7, 9
    for modulated, each in ((True, 5), (False, 4)):
        expected = 2 * pixels * taps * (6 * 2 + 4 * each)
        assert deform_conv_flops((2, 4, 5, 7), (6, 2, 3, 3), (2, 6, 5, 7), modulated) == expected


@pytest.mark.parametrize("backend", [name for name in ("numba", "reference") if name in available_backends()])
@pytest.mark.parametrize("modulated", [True, False])
def test_both_operators_are_counted_alike(backend: str, modulated: bool) -> None:
    mask = torch.ones(2, 18, 5, 7) if modulated else None
    with fapn_zoo.deform_conv_backend(backend), flop_counter() as counter:
        fapn_zoo.deform_conv2d(
            torch.ones(2, 4, 5, 7), torch.zeros(2, 36, 5, 7), torch.ones(6, 2, 3, 3), padding=1, mask=mask
        )
    assert counter.get_total_flops() == deform_conv_flops((2, 4, 5, 7), (6, 2, 3, 3), (2, 6, 5, 7), modulated)


def test_work_of_the_twins() -> None:
    found = {neck: count(get_spec(f"perpixel_{neck}_resnet50_ade20k")[0], (512, 1024)) for neck in ("fapn", "fpn")}
    assert found["fapn"]["params"] == 34_691_038 and found["fpn"]["params"] == 31_033_942
    # 147.2 G (as the official code computes it) and 94.8 G counted by hand from the shapes; sampling adds 5
    # multiply-adds per tap and channel, and half of each offset feature is made at a quarter of the pixels
    pixels = [128 * 256 // 4**level for level in range(4)]
    sampling = sum(pixels[:3]) * 256 * 9 * 5
    saved = (sum(pixels[:3]) - sum(pixels[1:])) * 256 * 256
    assert found["fapn"]["macs"] - sampling == pytest.approx(147.2e9 - saved, rel=1e-3)
    assert found["fpn"]["macs"] == pytest.approx(94.8e9, rel=1e-3)
    for numbers in found.values():
        assert numbers["macs"] == sum(numbers[f"macs_{part}"] for part in ("backbone", "neck", "head"))
    assert found["fapn"]["macs_backbone"] == found["fpn"]["macs_backbone"]


def test_work_of_a_convolution_by_hand() -> None:
    spec = tiny("fpn").spec
    model = fapn_zoo.create_model("perpixel_fpn", **TINY)
    assert count(spec, SIZE)["params"] == sum(p.numel() for p in model.parameters())
    # the head is a 3x3 convolution 16 -> 256 and a classifier 256 -> 3 at a quarter of the sides
    assert count(spec, SIZE)["macs_head"] == 16 * 24 * (9 * 16 * 256 + 256 * 3)
    assert count(spec, SIZE, batch=3)["macs"] == 3 * count(spec, SIZE)["macs"]


# Time ---------------------------------------------------------------------------------------------------------------


def test_a_run_in_turn_with_its_parts(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, bool]] = []
    once = inference.Run.once
    monkeypatch.setattr(inference.Run, "once", lambda run, keep: (order.append((run.name, keep)), once(run, keep)))
    threads, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    jobs = [(folders["fapn"], SIZE), (folders["fpn"], SIZE), (folders["fpn"], (50, 70))]
    report = benchmark(jobs, rounds=3, warmup=1, memory=False, threads=2, device="cpu")
    assert order == [(name, number > 0) for number in range(4) for name, _ in jobs]
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (threads, search)
    assert "(2 threads)" in report["device"] and report["settings"]["threads"] == 2
    for row, (name, size) in zip(report["rows"], jobs, strict=True):
        latency, stages = row["latency_ms"], row["stages_ms"]
        assert (row["model"], row["size"], row["peak_bytes"]) == (name, list(size), None)
        assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
        assert list(stages) == ["backbone", "neck", "head", "postprocess"] and min(stages.values()) > 0
        assert row["fps"] == pytest.approx(1e3 / latency["median"]) and row["fps_forward"] > row["fps"]
    first, second, third = report["rows"]
    assert first["ratio"] == third["ratio"] == 1
    assert second["ratio"] == pytest.approx(second["latency_ms"]["median"] / first["latency_ms"]["median"])
    assert first["macs"] > second["macs"] > third["macs"]


def test_time_is_found_where_it_is_spent(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    build = run_module.create_with_offsets

    def slow_neck(name: str, num_classes: int | None = None) -> nn.Module:
        model = build(name, num_classes)
        forward = model.neck.forward
        model.neck.forward = lambda features: (time.sleep(0.2), forward(features))[1]
        return model

    monkeypatch.setattr(run_module, "create_with_offsets", slow_neck)
    stages = benchmark([(folders["fpn"], SIZE)], rounds=3, warmup=1, memory=False, device="cpu")["rows"][0]["stages_ms"]
    assert stages["neck"] > 200 and max(stages["backbone"], stages["head"], stages["postprocess"]) < 150


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"channels_last": True, "batch": 2}], ids=str)
def test_ways_to_run(folders: dict[str, str], options: dict[str, Any]) -> None:
    row = benchmark([(folders["fapn"], SIZE)], rounds=1, warmup=0, memory=False, device="cpu", **options)["rows"][0]
    assert row["fps"] == pytest.approx(1e3 * options.get("batch", 1) / row["latency_ms"]["median"])


def test_dtype_and_memory_format_reach_weights_and_input() -> None:
    model, seen = tiny("fapn"), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        found = inference.prepare(model, (50, 70), batch=2, dtype="bf16", channels_last=True)()
    assert seen[0].dtype == torch.bfloat16 and seen[0].is_contiguous(memory_format=torch.channels_last)
    weight = model.neck.lateral[0].conv.weight
    assert weight.dtype == torch.bfloat16 and [one.labels.shape for one in found] == [(50, 70)] * 2


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_predict_does(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(device_module, "fast_bfloat16", lambda device: fast)
    model, runs = tiny("fapn"), []
    model.neck.register_forward_hook(lambda module, inputs, maps: runs.append(maps[0]))
    with torch.no_grad():
        found = inference.prepare(model, (64, 96), dtype="auto")()
    model.predict(np.zeros((64, 96, 3), np.uint8))
    ours, theirs = runs
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if fast else torch.float32)
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in runs) and ours.shape == theirs.shape
    assert model.neck.lateral[0].conv.weight.dtype == torch.float32 and found[0].labels.shape == (64, 96)


def test_parts_are_compiled_and_still_told_apart(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, real = [], torch.compile

    def traced(
        module: nn.Module, dynamic: bool
    ) -> nn.Module:  # the default backend takes minutes; what is traced, and that hooks survive, matters
        compiled.append((type(module).__name__, dynamic))
        return real(module, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    report = benchmark([(folders["fpn"], SIZE)], rounds=2, compile=True, memory=False, device="cpu")
    assert compiled == [("Backbone", False), ("FPN", False), ("PerPixelHead", False)]
    assert min(report["rows"][0]["stages_ms"].values()) > 0 and "compile" in render(report)


def test_fresh_offsets_are_as_wide_as_trained_ones() -> None:
    model = inference.create_with_offsets("perpixel_fapn_resnet10t", 3)
    for align in model.neck.align:
        offsets, masks = align.dcn.offset_mask.bias[:144], align.dcn.offset_mask.bias[144:]
        assert 1.5 < offsets.std() < 2.5 and not masks.any()
    trained = tiny("fapn")
    with torch.no_grad():
        trained.neck.align[0].dcn.offset_mask.weight += 1
    inference.draw_offsets(trained)
    assert not trained.neck.align[0].dcn.offset_mask.bias.any() and trained.neck.align[1].dcn.offset_mask.bias.any()


# Memory -------------------------------------------------------------------------------------------------------------


def test_the_peak_counts_what_is_gone_again() -> None:
    """In a process of its own, since one that has been larger may not be able to forget it."""
    code = """
import numpy as np
from fapn_zoo.benchmark import inference
inference.forget_peak()
before = inference.resident_peak()
block = np.ones(2**23)  # 64 MiB, really written
del block
print(inference.resident_peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60 * 2**20


def test_peak_memory_of_a_model(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("fapn")
    job = {"model": model.spec.to_config(), "size": (768, 1024), "threads": 1}
    job |= {"batch": 1, "dtype": "fp32", "channels_last": False}
    weights = inference.weight_bytes(model)
    assert weights == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # at stride 4 the mask features alone are 256 channels of fp32
    assert weights + 256 * 192 * 256 * 4 < inference.peak_memory(job) < weights + 20 * 256 * 192 * 256 * 4
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: the model description lacks head\n")
    monkeypatch.setattr(inference.subprocess, "run", lambda *_, **__: failed)
    assert inference.peak_memory(job) is None
    assert "peak memory could not be measured: ValueError: the model" in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu(folders: dict[str, str]) -> None:
    jobs = [(folders["fapn"], (512, 512)), (folders["fpn"], (512, 512))]
    report = benchmark(jobs, rounds=5, device="cuda", dtype="fp16")
    assert report["device"] == torch.cuda.get_device_name()
    for row, neck in zip(report["rows"], ("fapn", "fpn"), strict=True):
        half = inference.weight_bytes(tiny(neck)) / 2
        assert half + 256 * 128 * 128 * 2 < row["peak_bytes"] < half + 100 * 256 * 128 * 128
        assert min(row["stages_ms"].values()) > 0
        assert sum(row["stages_ms"].values()) < 1.5 * row["latency_ms"]["p90"]


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_sizes_as_they_are_written() -> None:
    assert parse_size("512") == (512, 512) and parse_size(" 512X1024 ") == (512, 1024)
    for text in ("", "0", "0x3", "axb", "1x2x3", "-4", "5.5"):
        with pytest.raises(ValueError, match="write 512 or 512x1024"):
            parse_size(text)


def test_what_cannot_be_measured(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = [(folders["fpn"], SIZE)]
    for options, told in (
        ({"dtype": "fp8"}, "dtype 'fp8'; expected one of fp32, bf16, fp16, auto"),
        ({"device": "warp"}, "device warp"),
        ({"rounds": 0}, "rounds=0"),
        ({"batch": 0}, "batch=0"),
        ({"threads": -1}, "threads=-1"),
        ({"warmup": -1}, "warmup=-1"),
    ):
        with pytest.raises(ValueError, match=told):
            benchmark(job, memory=False, **options)
    for jobs, told in (
        ([], "no model"),
        ([("nope", SIZE)], "unknown model 'nope'"),
        ([(folders["fpn"], (0, 3))], "size"),
        ([("perpixel_fapn_resnet18", SIZE)], "has no label set: say how many classes"),
        ([("perpixel_fapn", SIZE)], "has no label set"),
    ):
        with pytest.raises(ValueError, match=told):
            benchmark(jobs, memory=False, device="cpu")

    def no_kernel(*_: Any, **options: Any) -> None:
        raise RuntimeError("not implemented for 'Half'\nand a long trace")

    monkeypatch.setattr(inference, "decode", no_kernel)
    with pytest.raises(ValueError, match=r"cannot run at 64x96, batch 1, fp32: not implemented for 'Half'$"):
        benchmark(job, memory=False, device="cpu")


# Reports ------------------------------------------------------------------------------------------------------------


def test_rows_of_a_csv_file(folders: dict[str, str], tmp_path: Path) -> None:
    report = benchmark([(folders["fapn"], SIZE), (folders["fpn"], SIZE)], rounds=1, memory=False, device="cpu")
    path = tmp_path / "new" / "speed.csv"
    append_csv(report, path)
    append_csv(report, path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and list(rows[0]) == CSV_COLUMNS and rows[0] == rows[2]
    row = rows[1]
    assert (row["model"], row["size"], row["peak_mib"]) == (folders["fpn"], "64x96", "")
    assert row["ratio_to"] == folders["fapn"] and row["torch"] in torch.__version__ and row["fapn_zoo"]
    assert float(row["fps"]) > 0 and int(row["macs"]) == report["rows"][1]["macs"]
    text = render(report)
    assert all(name in text for name in folders.values()) and f"{report['rows'][1]['ratio']:.2f}" in text
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv has the columns a,b"):
        append_csv(report, other)
    assert other.read_text() == "a,b\n1,2\n"


def test_the_real_time_table_is_that_of_the_talk() -> None:
    assert {(name.split("_")[2], size) for name, size in REALTIME} == {
        ("resnet18", (512, 1024)),
        ("resnet18", (768, 1536)),
        ("resnet18", (640, 640)),
        ("resnet34", (1024, 2048)),
        ("resnet34", (640, 640)),
    }
    for name, size in REALTIME:
        spec = get_spec(name)[0]
        assert spec.num_classes == (171 if size == (640, 640) else 19)


def test_verb(
    capsys: pytest.CaptureFixture[str], folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [folders["fapn"], folders["fpn"]]
    quick = ["--rounds", "1", "--no-memory", "--device", "cpu"]
    code = main(["benchmark", *both, "--size", "64x96", "--size", "64", *quick, "--csv", str(tmp_path / "x.csv")])
    out = capsys.readouterr().out
    assert code == 0 and out.count("64x96") == 2 and out.count("64x64") == 2
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5
    (tmp_path / "other.csv").write_text("a,b\n")
    for words, told in (
        ([], "name models"),
        (["--realtime", both[0]], "name models"),
        (["--realtime", "--size", "64"], "name models"),
        ([both[0], "--size", "6x"], "size '6x'"),
        ([both[0], "--dtype", "int4"], "dtype 'int4'"),
        ([both[0], "--csv", str(tmp_path / "other.csv")], "has the columns a,b"),
    ):
        assert main(["benchmark", *words]) == 1
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("error: ") and told in err[-1]

    def interrupt(run: inference.Run, keep: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference.Run, "once", interrupt)
    threads = torch.get_num_threads()
    assert main(["benchmark", both[0], "--size", "64", "--threads", "3", "--csv", str(tmp_path / "y.csv")]) == 130
    assert torch.get_num_threads() == threads and not (tmp_path / "y.csv").exists()
