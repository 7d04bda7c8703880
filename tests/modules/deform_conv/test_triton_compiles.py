"""The Triton kernels compile for real GPUs, without one: Triton brings its compiler and the assembler along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.deform_conv_cases import SHAPES, Shape, make_tensors

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.unit

FAPN = Shape((2, 256, 256, 16, 32), offset_groups=8)
NARROW = Shape((2, 64, 64, 16, 16), offset_groups=8)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# What a program can have at most on compute capability 8.0 and 9.0.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}


class Recorder:
    """Stands in for a kernel and keeps what it would have been launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.arguments = kernel, None

    def __getitem__(self, grid: tuple) -> Callable:
        def launch(*args: Any, **kwargs: Any) -> None:
            names = self.kernel.arg_names[: len(args)]
            self.arguments = {**dict(zip(names, args, strict=True)), **kwargs}

        return launch


def specialise(kernel: Any, arguments: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Types, constants and multiples of 16, as Triton's launcher sees these arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_like_a_launch(kernel: Any, arguments: dict[str, Any], capability: int) -> Any:
    """Compile `kernel` the way Triton's launcher specialises these arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
    options = {name: arguments[name] for name in names if name in arguments}
    source = ASTSource(kernel, *specialise(kernel, arguments))
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Runs forward and backward with recorders for kernels; returns {kernel's name: (kernel, arguments)}."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from fapn_zoo.modules.deform_conv.cuda import kernels, launch, tuning

    names = ("forward_kernel", "backward_data_kernel", "backward_weight_kernel", "copy_kernel")
    originals = {name: getattr(kernels, name) for name in names}

    def run(shape: Shape, dtype: torch.dtype, channels_last: bool, which: int) -> dict[str, tuple]:
        recorders = {name: Recorder(kernel) for name, kernel in originals.items()}
        for name, recorder in recorders.items():
            monkeypatch.setattr(kernels, name, recorder)

        def launch_one(kernel: str, call: Any, launch: Callable, *args: Any) -> Any:
            configs = tuning.candidates(kernel, call.geometry, call.dtype, False, 132)
            return launch(configs[min(which, len(configs) - 1)])

        monkeypatch.setattr(launch, "run", launch_one)
        tensors = [tensor.detach() for tensor in make_tensors(shape, dtype)]
        if channels_last:
            tensors = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
        input, offset, weight, bias, mask = tensors
        pairs = [list(pair) for pair in shape.arguments.values()]
        output = launch.forward(input, offset, weight, bias, mask, pairs)
        launch.backward(output, input, offset, weight, mask, pairs, [True] * 5)
        return {name: (each.kernel, each.arguments) for name, each in recorders.items() if each.arguments}

    return run


@pytest.mark.parametrize(
    "shape, dtype, channels_last, which, capability, wide",
    [
        (FAPN, torch.bfloat16, True, 0, 90, False),
        (FAPN, torch.bfloat16, True, 3, 90, True),
        (FAPN, torch.float16, False, 1, 80, False),
        (FAPN, torch.float32, False, 0, 90, False),
        (NARROW, torch.bfloat16, False, 0, 90, False),
        (SHAPES["one_pixel"], torch.float32, False, 0, 80, True),
        (SHAPES["groups_across"], torch.float16, True, 0, 90, False),
    ],
)
def test_kernels_compile(
    record: Callable,
    monkeypatch: pytest.MonkeyPatch,
    shape: Shape,
    dtype: torch.dtype,
    channels_last: bool,
    which: int,
    capability: int,
    wide: bool,
) -> None:
    if wide:
        monkeypatch.setattr("fapn_zoo.modules.deform_conv.cuda.launch._extent", lambda tensor: 2**31)
        monkeypatch.setattr("fapn_zoo.modules.deform_conv.cuda.launch._calls", {})
    launches = record(shape, dtype, channels_last, which)
    assert len(launches) >= 3
    for name, (kernel, arguments) in launches.items():
        compiled = compile_like_a_launch(kernel, arguments, capability)
        assert compiled.metadata.shared <= SHARED_MEMORY[capability], name
        # Images are read 16 bytes at a time, and products of half precision go to tensor cores.
        if shape is FAPN and name != "copy_kernel":
            assert "v4.b32" in compiled.asm["ptx"] or "cp.async" in compiled.asm["ptx"], name
            if dtype != torch.float32:
                assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"], name


@pytest.mark.parametrize("channels_last", [True, False])
def test_other_sizes_of_images_need_no_other_code(record: Callable, channels_last: bool) -> None:
    seen = []
    for height, width in ((16, 32), (40, 16), (48, 112)):
        shape = FAPN._replace(size=(2, 256, 256, height, width))
        launches = record(shape, torch.bfloat16, channels_last, 99)
        seen.append({name: specialise(*launch) for name, launch in launches.items()})
    assert seen[0].keys() >= {"forward_kernel", "backward_data_kernel", "backward_weight_kernel"}
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("kernel", ["forward", "backward_data", "backward_weight"])
@pytest.mark.parametrize("name", SHAPES)
def test_candidates_have_blocks_that_a_product_takes(kernel: str, name: str) -> None:
    from fapn_zoo.modules.deform_conv.cuda.tuning import candidates
    from fapn_zoo.modules.deform_conv.geometry import Geometry, channel_blocks

    shape = SHAPES[name]
    input, offset, weight, _, _ = make_tensors(shape)
    geo = Geometry.of(input, offset, weight, shape.arguments.values())
    for dtype in (torch.float32, torch.bfloat16):
        for tf32 in (False, True):
            configs = candidates(kernel, geo, dtype, tf32, 132)
            assert len(set(configs)) == len(configs) > 0
            for config in configs:
                blocks = channel_blocks(geo.channels, geo.groups, geo.offset_groups, config.channels)
                assert blocks.size == config.channels >= 16 and config.block_n >= 16
                assert blocks.size & (blocks.size - 1) == 0 == config.block_n & (config.block_n - 1)
                # A block lies in one weight group, and a run in one offset group unless it is whole ones.
                assert geo.channels // geo.groups % blocks.run == 0
                per_offset = geo.channels // geo.offset_groups
                assert per_offset % blocks.run == 0 or blocks.run == blocks.samples * per_offset
