"""Targets come out of a loader's worker as they went in, however their class ids travel."""

from __future__ import annotations

import pickle

import pytest
import torch

from fapn_zoo.modules.heads.outputs import Targets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("highest", [0, 255, 256, 65535])
@pytest.mark.parametrize("lowest", [0, -1])
def test_ids_travel_as_bytes_where_they_can(highest: int, lowest: int) -> None:
    labels = torch.full((2, 50, 70), 3)
    labels[0, 0, 0], labels[1, -1, -1] = lowest, highest
    data = pickle.dumps(Targets(labels, seeds=torch.tensor([4, 5]), ignore_index=highest))
    found = pickle.loads(data)
    assert found.labels.dtype == torch.int64 and torch.equal(found.labels, labels)
    assert torch.equal(found.seeds, torch.tensor([4, 5])) and found.ignore_index == highest
    assert (len(data) < 2 * labels.numel()) == (lowest == 0 and highest < 256)
    assert torch.equal(labels, torch.full((2, 50, 70), 3).index_put(
        (torch.tensor([0, 1]), torch.tensor([0, 49]), torch.tensor([0, 69])), torch.tensor([lowest, highest])
    ))  # fmt: skip


def test_what_has_no_labels_travels() -> None:
    found = pickle.loads(pickle.dumps(Targets(None, (torch.tensor([1, 2]),), (torch.ones(2, 4, 4) > 0,))))
    assert found.labels is None and found.masks[0].all() and found.classes[0].tolist() == [1, 2]
    assert pickle.loads(pickle.dumps(Targets(torch.zeros(0, 4, 4, dtype=torch.int64)))).labels.shape == (0, 4, 4)
