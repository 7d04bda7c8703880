"""PyTorch's exporters: ONNX files that onnxruntime runs, graphs of torch.export, TorchScript; no backend is chosen."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.modules.deform_conv import conv
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, SemanticOutput

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:You are using the legacy:DeprecationWarning"),
]

NECK = {"neck_out_channels": 32, "neck_deform_groups": 4}
FAPN = NECK | {"head_mask_channels": 16}
MODELS = {
    "perpixel_fapn": FAPN,
    "maskformer_fapn": FAPN | {"head_num_queries": 6, "head_layers": 2, "head_channels": 32, "head_heads": 4},
    "pointrend_fapn": NECK | {"head_channels": 64, "head_point_channels": 32},
    "maskformer_fpn": {"neck_out_channels": 32, "head_num_queries": 6, "head_layers": 2, "head_heads": 4},
}
ONNX = {"torch.export": {"dynamo": True}, "tracing": {"dynamo": False, "opset_version": 19}}


def make(name: str) -> nn.Module:
    """A model whose offsets are not all zero, as those of fresh weights would be."""
    torch.manual_seed(0)
    model = fapn_zoo.create_model(name, backbone="resnet10t", num_classes=5, **MODELS[name]).eval()
    for parameter in model.neck.parameters():
        if parameter.dim() == 4 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    if hasattr(model.head, "points"):  # what it refines would hardly differ from nothing
        nn.init.normal_(model.head.points.predictor.weight)
    return model


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def tensors(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [value for value in model(x) if isinstance(value, Tensor)]


def export(model: nn.Module, x: Tensor, path: Path, **how: object) -> onnxruntime.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters that are deprecated
        torch.onnx.export(model, (x,), str(path), input_names=["images"], **how)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def operators(path: Path) -> list[str]:
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    return [node.op_type for node in nodes]


def largest_difference(session: onnxruntime.InferenceSession, model: nn.Module, x: Tensor) -> float:
    found, expected = session.run(None, {"images": x.numpy()}), tensors(model, x)
    assert [value.shape for value in found] == [tuple(value.shape) for value in expected]
    return max(np.abs(a - b.float().numpy()).max() for a, b in zip(found, expected, strict=True))


EVERY = [(name, exporter) for name in ("perpixel_fapn", "pointrend_fapn", "maskformer_fapn") for exporter in ONNX]


@pytest.mark.parametrize(("name", "exporter"), [*EVERY, ("maskformer_fpn", "tracing")])
def test_onnx_of_any_batch_and_size(name: str, exporter: str, tmp_path: Path) -> None:
    model, x, path = make(name), images(2, 3, 64, 96), tmp_path / "model.onnx"
    before, state = tensors(model, x), conv.active_backend()
    if exporter == "tracing":
        free = {"dynamic_axes": {"images": {0: "batch", 2: "height", 3: "width"}}}
    else:
        batch, *sides = (torch.export.Dim(side, min=1, max=16) for side in ("batch", "height", "width"))
        free = {"dynamic_shapes": ({0: batch, 2: 32 * sides[0], 3: 32 * sides[1]},)}
    session = export(model, x, path, **ONNX[exporter], **free)
    assert operators(path).count("DeformConv") == (3 if "fapn" in name else 0)
    for size in ((2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 128, 96)):
        assert largest_difference(session, model, images(*size)) < 1e-4
    assert conv.active_backend() == state
    assert all(torch.equal(a, b) for a, b in zip(tensors(model, x), before, strict=True))
    assert isinstance(model(x), MaskFormerOutput if "mask" in name else SemanticOutput)


@pytest.mark.parametrize("exporter", ONNX)
def test_onnx_of_a_module_around_the_model(exporter: str, tmp_path: Path) -> None:
    """It reads fields by name, numbers among them, and may compute in any context."""

    class Enlarged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make("perpixel_fapn")

        def forward(self, x: Tensor) -> tuple[Tensor]:
            output = self.model(x)
            assert output.aux == ()
            return (nn.functional.interpolate(output.logits, scale_factor=float(output.stride), mode="bilinear"),)

    model, x = Enlarged().eval(), images(1, 3, 64, 96)
    with torch.inference_mode():
        session = export(model, x, tmp_path / "model.onnx", **ONNX[exporter])
    assert largest_difference(session, model, x) < 1e-4


def test_onnx_of_the_embedded_model(tmp_path: Path) -> None:
    """With real weights, of one size, the class of every pixel is the same but where two are within rounding."""
    model = fapn_zoo.create_model("perpixel_fapn_resnet18_slim_camvid", pretrained=True).eval()
    x = images(1, 3, 96, 128)
    session = export(model, x, tmp_path / "model.onnx", dynamo=True)
    assert largest_difference(session, model, x) < 1e-3
    (found,) = session.run(None, {"images": x.numpy()})
    assert (found.argmax(1) == tensors(model, x)[0].argmax(1).numpy()).mean() > 0.999


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_onnx_whatever_backend_is_chosen(backend: str, tmp_path: Path) -> None:
    model, x = make("perpixel_fapn"), images(1, 3, 64, 64)
    with fapn_zoo.deform_conv_backend(backend):
        session = export(model, x, tmp_path / "model.onnx", **ONNX["tracing"])
        assert conv.active_backend() == backend
    assert largest_difference(session, model, x) < 1e-4


@pytest.mark.parametrize("exporter", ONNX)
def test_onnx_in_half_precision(exporter: str, tmp_path: Path) -> None:
    model, x = make("perpixel_fapn").half(), images(1, 3, 64, 96).half()
    session = export(model, x, tmp_path / "model.onnx", **ONNX[exporter])
    found, expected = session.run(None, {"images": x.numpy()})[0], tensors(model, x)[0]
    assert found.dtype == np.float16 and np.abs(found - expected.numpy()).max() < 0.02


def test_onnx_without_bias_mask_or_symmetry(tmp_path: Path) -> None:
    """The operator alone, with every number different, by the exporter that has its arguments from us."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(images(8, 4, 3, 2))

        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return fapn_zoo.deform_conv2d(x, offset, self.weight, stride=(2, 1), padding=(1, 3), dilation=(2, 3))

    x, offset, path = images(2, 8, 15, 14), images(2, 4 * 2 * 6, 7, 17), tmp_path / "alone.onnx"
    torch.onnx.export(Alone(), (x, offset), str(path), input_names=["x", "offset"], **ONNX["tracing"])
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy(), "offset": offset.numpy()})
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == "DeformConv"]
    assert len(node.input) == 4
    torch.manual_seed(0)
    with torch.no_grad():
        np.testing.assert_allclose(found, Alone()(x, offset).numpy(), rtol=1e-4, atol=1e-4)


def test_a_model_in_training_mode_is_told_of(tmp_path: Path) -> None:
    """By PyTorch itself; the tracing exporter takes evaluation mode for as long as it works."""
    model, x = make("perpixel_fapn").train(), images(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"training mode.*model\.eval\(\)"):
        torch.onnx.export(model, (x,), str(tmp_path / "train.onnx"), dynamo=True)
    assert model.training
    session = export(model, x, tmp_path / "model.onnx", **ONNX["tracing"])
    assert model.training and largest_difference(session, model.eval(), x) < 1e-4


@pytest.mark.parametrize(("name", "strict"), [("perpixel_fapn", False), ("maskformer_fapn", True)])
def test_torch_export_holds_torchvisions_operator(name: str, strict: bool, tmp_path: Path) -> None:
    model, x = make(name), images(2, 3, 64, 96)
    program = torch.export.export(model, (x,), strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("torchvision.deform_conv2d" in name for name in names) == 3 and not any("fapn_zoo" in n for n in names)
    torch.export.save(program, tmp_path / "model.pt2")
    output = torch.export.load(tmp_path / "model.pt2").module()(x)
    assert type(output) is type(model(x)) and output.stride == 4
    for value, expected in zip([v for v in output if isinstance(v, Tensor)], tensors(model, x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_torchscript_by_tracing_needs_nothing_of_ours(tmp_path: Path) -> None:
    model, x = make("perpixel_fapn"), images(1, 3, 64, 96)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (x,), check_trace=False).save(str(tmp_path / "model.pt"))
        loaded = torch.jit.load(str(tmp_path / "model.pt"))
        text = str(loaded.inlined_graph)
        assert text.count("torchvision::deform_conv2d") == 3 and "fapn_zoo::" not in text
        torch.testing.assert_close(loaded(x)[0], model(x).logits, rtol=1e-4, atol=1e-4)


def test_compiling_is_not_exporting() -> None:
    torch.compiler.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model, x = make("perpixel_fapn"), images(1, 3, 64, 64)
    output = torch.compile(model, fullgraph=True, backend=backend)(x)
    assert isinstance(output, SemanticOutput) and output.stride == 4
    assert sum("fapn_zoo.deform_conv2d" in name for name in seen) == 3


@pytest.mark.parametrize("how", ["torch.export", "tracing"])
def test_a_forward_beside_an_export_keeps_its_backend(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, reference, beside = conv.torchvision_deform_conv2d, set(), []
    plain, x = make("perpixel_fapn"), images(1, 3, 64, 64)

    def noted(*args: object, **named: object) -> Tensor:
        reference.add(threading.get_ident())
        return real(*args, **named)

    class Meanwhile(nn.Module):
        """Starts a usual forward in the middle of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.model = make("perpixel_fapn")

        def forward(self, y: Tensor) -> Tensor:
            def usual() -> None:
                beside.append((threading.get_ident(), plain(x)))

            other = threading.Thread(target=usual)
            other.start()
            other.join()
            return self.model(y)[0]

    monkeypatch.setattr(conv, "torchvision_deform_conv2d", noted)
    expected = plain(x).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "tracing":
            torch.jit.trace(Meanwhile(), (x,), check_trace=False)
        else:
            torch.export.export(Meanwhile(), (x,), strict=False)
    assert beside and reference == {threading.get_ident()}
    for _, output in beside:
        assert isinstance(output, SemanticOutput)
        torch.testing.assert_close(output.logits, expected)
