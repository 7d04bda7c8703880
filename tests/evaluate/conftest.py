"""The model that most tests of evaluation share."""

from __future__ import annotations

import pytest
import torch
from evaluate_toys import small_model


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return small_model()
