"""Comparisons with stored outputs, of which each becomes a row of the table that the run ends with."""

from __future__ import annotations

import pytest
from torch import Tensor
from toys.golden_rule import NOISE_FACTOR, Golden

TABLE = f"parity with the official models: at most {NOISE_FACTOR} times the rounding noise of their own"


@pytest.fixture
def compare(record_property):
    """``compare(golden, outputs)`` checks stored outputs, largest ratio last, and puts each into the table."""

    def run(golden: Golden, outputs: dict[str, Tensor]) -> None:
        for name, output in outputs.items():
            difference, noise = golden.check(name, output), golden.noise(name)
            record_property(
                f"row of {TABLE}",
                {
                    "model": golden.folder.name,
                    "tensor": name,
                    "max difference": f"{difference:.3g}",
                    "noise floor": f"{noise:.3g}",
                    "ratio": f"{difference / noise:.2f}",
                },
            )

    return run
