"""Deformable convolution on the CPU: numba samples and multiplies, on small tiles that stay in cache.

These are the kernels that `ops.py` calls on the CPU. Their first run imports numba.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from fapn_zoo.modules.deform_conv.cpu.plan import (
    Gradients,
    Tensors,
    Work,
    is_part,
    make_plan,
    make_work,
    steps,
    vector_length,
)
from fapn_zoo.modules.deform_conv.geometry import Geometry, Pairs
from fapn_zoo.modules.layers.conv import is_channels_last, memory_format
from fapn_zoo.runtime.workers import run_workers


def _dense(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A tensor's values in `dtype`, in the layout that the fake kernels of `ops.py` promise; None stays None."""
    if tensor is None:
        return None
    layout = memory_format(tensor)
    # By itself, a conversion would make a part of a channels-last tensor channels-last.
    return tensor.detach().to(dtype, memory_format=layout).contiguous(memory_format=layout)


def _readable(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As `_dense`, but a part of a larger tensor stays where it is: offsets and masks come from one convolution."""
    if tensor is not None and tensor.dtype == dtype and is_part(tensor):
        return tensor.detach()
    return _dense(tensor, dtype)


def _flat(tensor: Tensor) -> np.ndarray:
    """The numbers in the order of memory of a tensor that is dense, or a part (see `is_part`); bfloat16 as uint16."""
    if tensor.dim() == 4 and is_part(tensor):
        tensor = tensor.as_strided((tensor.stride(0) * len(tensor) - tensor.stride(3) + tensor.shape[1],), (1,))
    tensor = (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 and is_channels_last(tensor) else tensor).view(-1)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _table_size(geometry: Geometry) -> int:
    return geometry.channels * ((geometry.height + 3) * (geometry.width + 2) + 1)


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, pairs: Pairs
) -> Tensor:
    """Deformable convolution of checked tensors; the output has dtype and layout of `input`.

    `input`, `weight` and `bias` share one dtype. In bfloat16, products of bfloat16 are summed in float32.
    """
    from fapn_zoo.modules.deform_conv.cpu import kernels, vectors

    geo, wanted = Geometry.of(input, offset, weight, pairs), input.dtype
    real = torch.float64 if wanted == torch.float64 else torch.float32
    suits = wanted == torch.bfloat16 and vectors.has_bfloat16() and vector_length(geo) >= 16
    dtype = torch.bfloat16 if suits else real
    size = geo.batch, geo.out_channels, geo.out_height, geo.out_width
    input, weight = _dense(input, dtype), weight.detach().to(dtype).contiguous()
    output = torch.empty(size, dtype=dtype, memory_format=memory_format(input))
    if output.numel() == 0:
        return output.to(wanted)
    # Positions are computed in `real`, from halves or not.
    halves = all(tensor is None or tensor.dtype == torch.bfloat16 for tensor in (offset, mask))
    offset, mask = (_readable(tensor, torch.bfloat16 if halves else real) for tensor in (offset, mask))
    plan = make_plan(geo, offset, mask, output)
    (fill, _, pack), compute = kernels.make_movers(), kernels.make_forward(vector_length(geo))
    start = torch.zeros(geo.groups, plan.wide, dtype=real)
    if bias is not None:
        start[:, : plan.outs] = bias.detach().view(geo.groups, -1)
    table = input.new_empty(geo.batch * _table_size(geo))
    packed = weight.new_empty(geo.channels * geo.taps * plan.weight)
    factors = offset.new_empty(0) if mask is None else mask
    images, weight, start = map(_flat, (input, weight, start))
    tensors = Tensors(*map(_flat, (table, offset, factors, packed, output)))
    rows, pieces, tiles = np.zeros((3, 1), np.int64)
    input_steps = steps(input)

    def prepare(_: int) -> None:
        fill(images, input_steps, 0, tensors.table, geo, rows)
        pack(weight, tensors.weight, np.zeros(16 * plan.depth, weight.dtype), geo, plan, pieces)

    def work(_: int) -> None:
        compute(tensors, start, make_work(geo, plan, dtype), tiles)

    # Each tile is computed the same whoever takes it: results do not depend on the number of threads.
    threads = min(torch.get_num_threads(), geo.batch * -(-geo.pixels // plan.tile))
    run_workers(prepare, threads)
    run_workers(work, threads)
    return output.to(wanted)


def _channel_blocks(geometry: Geometry, threads: int) -> int:
    """Into how many runs of channels the backward splits each image so that every thread has work of its own.

    A block holds whole offset groups, and whole weight groups or a part of one, so no two threads write one gradient.
    """
    wanted = -(-threads // geometry.batch)
    groups, offset_groups = geometry.groups, geometry.offset_groups
    divisors = (n for n in range(1, offset_groups + 1) if offset_groups % n == 0)
    allowed = [n for n in divisors if groups % n == 0 or n % groups == 0]
    return next((n for n in allowed if n >= wanted), allowed[-1])


class _Backward:
    """One backward pass: its items are (run of channels, image), each done by one thread."""

    def __init__(self, geo: Geometry, grad: Tensor, dense: dict[str, Tensor | None], grads: dict[str, Tensor]) -> None:
        from fapn_zoo.modules.deform_conv.cpu import kernels

        input, offset, weight, mask = dense.values()
        self.geo, self.dtype, self.grad_weight = geo, grad.dtype, grads["weight"]
        self.threads = torch.get_num_threads()
        self.blocks = _channel_blocks(geo, self.threads)
        # One image and one run of its channels.
        groups = max(geo.groups // self.blocks, 1)
        sizes = {"channels": geo.channels // self.blocks, "out_channels": geo.out_channels // geo.groups * groups}
        sizes |= {"groups": groups, "offset_groups": geo.offset_groups // self.blocks}
        self.part = geo._replace(batch=1, **sizes)
        self.plan = make_plan(self.part, offset, mask, grad, backward=True)
        self.fill, self.drain, _ = kernels.make_movers()
        self.adjoint = kernels.make_adjoint(vector_length(self.part))
        factors = input.new_empty(0) if mask is None else mask
        self.grad, self.input, self.offset, self.mask = map(_flat, (grad, input, offset, factors))
        self.grad_input, self.grad_offset, self.grad_mask = (_flat(grads[name]) for name in ("input", "offset", "mask"))
        self.steps = steps(input)
        # (blocks, pieces of a block, outs, taps * channels of a piece)
        pieces = geo.channels // geo.groups // self.plan.piece
        weight = weight.reshape(geo.groups, self.plan.outs, pieces, self.plan.piece, geo.taps)
        weight = weight.permute(0, 2, 1, 4, 3).reshape(self.blocks, -1, self.plan.outs, self.plan.depth)
        self.weight = torch.nn.functional.pad(weight, (0, self.plan.weight - self.plan.depth)).flatten(1).numpy()

    def run(self) -> None:
        items = list(itertools.product(range(self.blocks), range(self.geo.batch)))
        count = min(self.threads, len(items))
        # Fixed shares, summed in a fixed order: with the same number of threads the result is the same to the last bit.
        shares = [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]
        totals = [{} for _ in range(count)]
        size = self.part.channels // self.plan.piece, self.plan.deep, self.plan.wide
        size = size if self.grad_weight.numel() else (0, 0, 0)

        def work(worker: int) -> None:
            memory = make_work(self.part, self.plan, self.dtype, backward=True)
            for block, image in shares[worker]:
                if block not in totals[worker]:
                    totals[worker][block] = np.zeros(size, self.grad.dtype)
                self._item(block, image, totals[worker][block].reshape(-1), memory)

        run_workers(work, count)
        if self.grad_weight.numel():
            self._gather_weight(totals)

    def _item(self, block: int, image: int, total: np.ndarray, memory: Work) -> None:
        geo, part, plan = self.geo, self.part, self.plan
        start = image * geo.channels * geo.height * geo.width + block * part.channels * self.steps[0]
        table = np.empty(_table_size(part), self.grad.dtype)
        grad_table = np.zeros(table.size if self.grad_input.size else 0, self.grad.dtype)
        self.fill(self.input, self.steps, start, table, part, np.zeros(1, np.int64))
        # The first of the output channels that depend on the block.
        out = block * geo.groups // self.blocks * plan.outs
        grad_start = image * geo.out_channels * geo.pixels + out * plan.output_steps[0]
        tensors = Tensors(table, self.offset, self.mask, self.weight[block], self.grad)
        grads = Gradients(grad_table, self.grad_offset, self.grad_mask, total)
        self.adjoint(tensors, grads, grad_start, image, block * part.offset_groups, memory)
        if self.grad_input.size:
            self.drain(grad_table, self.grad_input, self.steps, start, part)

    def _gather_weight(self, totals: list[dict[int, np.ndarray]]) -> None:
        """Add the threads' sums, each (pieces, deep, wide), into the weight's gradient."""
        geo, part, plan = self.geo, self.part, self.plan
        # How many blocks share one weight group.
        split = max(self.blocks // geo.groups, 1)
        target = self.grad_weight.view(geo.groups, plan.outs, split, part.channels // part.groups, geo.taps)
        for block, total in (pair for worker in totals for pair in worker.items()):
            first = block * geo.groups // self.blocks
            total = torch.from_numpy(total)[:, : plan.depth, : plan.outs]
            total = total.reshape(part.groups, -1, geo.taps, plan.piece, plan.outs).permute(0, 4, 1, 3, 2)
            target[first : first + part.groups, :, block % split] += total.flatten(2, 3)


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, pairs: Pairs, needs: list[bool]
) -> list[Tensor]:
    """Gradients of input, offset, weight, bias, mask where `needs` says so, an empty tensor elsewhere.

    Half precision is computed in float32. Gradients have the dtypes of their tensors, and all but the weight's the
    layouts; for the tensors see `forward`.
    """
    geo = Geometry.of(input, offset, weight, pairs)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    real = torch.float64 if input.dtype == torch.float64 else torch.float32
    tensors = {"input": input, "offset": offset, "weight": weight, "mask": mask}
    wanted = {"input": need_input, "offset": need_offset, "weight": need_weight, "mask": need_mask}
    dense = {name: _dense(tensor, real) for name, tensor in tensors.items()}
    dense["weight"] = dense["weight"].contiguous()
    # The kernels write every number of the gradients of offset and mask, and add to the weight's.
    grads = {name: torch.zeros_like(dense[name]) for name, need in wanted.items() if need}
    grads = {name: grads.get(name, dense["input"].new_empty(0)) for name in wanted}
    if grad.numel() and any(wanted.values()):
        _Backward(geo, _dense(grad, real), dense, grads).run()
    grads["bias"] = grad.detach().sum((0, 2, 3)) if need_bias else input.new_empty(0)
    # There is no bias here; its dtype is the weight's.
    tensors = {**tensors, "bias": weight, "mask": input if mask is None else mask}
    return [grads[name].to(tensors[name].dtype) for name in ("input", "offset", "weight", "bias", "mask")]
