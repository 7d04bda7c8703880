from __future__ import annotations

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fapn_zoo.data.cache import CachedDataset
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.loader import StepBatches, train_batches
from fapn_zoo.data.sample import LABELS, SEGMENTS, DataError, Objects, Sample
from fapn_zoo.data.transforms import TrainTransform

pytestmark = pytest.mark.unit
TRANSFORM = TrainTransform((16, 24))


class Numbers:
    """Pictures filled with their own index; counts how often each is decoded."""

    def __init__(self, count=7, bad=(), labels=None, sizes=((20, 30),)):
        self.name, self.count, self.bad, self.reads, self.sizes = "numbers", count, bad, Counter(), sizes
        self.labels, self.holds = labels or LabelMap.default(11), LABELS

    def __len__(self):
        return self.count

    def size(self, i):
        return self.sizes[i % len(self.sizes)]

    def sample(self, i):
        self.reads[i] += 1
        if i in self.bad:
            raise DataError(f"cannot read picture_{i}.png: broken")
        ids = np.random.default_rng(i).integers(0, self.labels.num_classes, self.size(i))
        dtype = np.uint8 if self.labels.num_classes <= 256 else np.int32
        image = torch.full((3, *self.size(i)), i, dtype=torch.uint8)
        return Sample(image, f"picture_{i}", ids.astype(dtype))


def stacked(samples):
    labels = [torch.from_numpy(sample.labels) for sample in samples]
    return torch.stack([sample.image for sample in samples]), torch.stack(labels)


def batches(dataset=None, start=0, total=6, **kw):
    """(step, images, labels) of every batch."""
    args = dict(batch_size=4, seed=5) | kw
    workers, cache, dataset = args.pop("workers", 0), args.pop("cache", False), dataset or Numbers()
    dataset = CachedDataset(dataset, LABELS) if cache else dataset
    stream = StepBatches(dataset, TRANSFORM, start_step=start, total_steps=total, **args)
    found = train_batches(stream, stacked, workers)
    return [(step, *batch) for step, batch in enumerate(found, start)]


def same(a, b):
    assert [x[0] for x in a] == [x[0] for x in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[1], y[1]) and torch.equal(x[2], y[2])


def test_shapes_and_steps():
    out = batches(start=2, total=5)
    assert [step for step, _, _ in out] == [2, 3, 4]
    for _, images, labels in out:
        assert images.shape == (4, 3, 16, 24) and images.dtype == torch.float32 and images.max() > 1
        assert labels.shape == (4, 16, 24) and labels.dtype == torch.int64
    assert batches(start=6) == []


@pytest.mark.parametrize("start", [1, 3, 5])
def test_resumed_equals_uninterrupted(start):
    same(batches()[start:], batches(start=start))


def test_a_longer_run_begins_the_same():
    same(batches(total=6), batches(total=9)[:6])


@pytest.mark.parametrize("cache", [False, True])
def test_workers_change_nothing(cache):
    same(batches(), batches(workers=2, cache=cache))
    same(batches()[3:], batches(workers=2, cache=cache, start=3))


def test_ranks_share_the_batch():
    whole = batches()
    for world in (2, 4):
        parts = [batches(rank=r, world_size=world) for r in range(world)]
        assert parts[0][0][1].shape[0] == 4 // world
        same(whole, [(ps[0][0], torch.cat([p[1] for p in ps]), torch.cat([p[2] for p in ps]))
                     for ps in zip(*parts, strict=True)])  # fmt: skip


def test_every_epoch_has_every_sample_once_in_another_order():
    stream = StepBatches(Numbers(7), TRANSFORM, 4, 5, 0, 14)
    order = [stream.index_at(p) for p in range(len(stream))]
    assert len(order) == 56
    epochs = [tuple(order[i : i + 7]) for i in range(0, 56, 7)]
    assert all(sorted(e) == list(range(7)) for e in epochs) and len(set(epochs)) > 6
    assert [stream.index_at(p) for p in (40, 3, 22, 4)] == [order[p] for p in (40, 3, 22, 4)]  # any access order


def test_the_seed_decides():
    a, b = batches(seed=5), batches(seed=6)
    assert not torch.equal(a[0][1], b[0][1])
    one = batches(Numbers(1), total=3, batch_size=2)  # the same picture, changed anew each time
    flat = torch.cat([labels for _, _, labels in one])
    assert all(not torch.equal(flat[i], flat[j]) for i in range(6) for j in range(i))


def test_a_data_set_smaller_than_the_batch():
    assert batches(Numbers(3), batch_size=8, total=2)[1][1].shape[0] == 8


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches()
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(99)
    a = batches()
    torch.manual_seed(100)
    same(a, batches())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_one_clean_line(workers):
    got = []
    with pytest.raises(DataError) as caught:
        stream = StepBatches(Numbers(7, bad=(3,)), TRANSFORM, 2, 5, 0, 20)
        for item in train_batches(stream, stacked, workers=workers):
            got.append(item)
    assert str(caught.value) == "cannot read picture_3.png: broken"
    stream = StepBatches(Numbers(7), TRANSFORM, 2, 5, 0, 20)
    assert len(got) == next(p for p in range(40) if stream.index_at(p) == 3) // 2  # not before its own step


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(batch_size=6, world_size=4), "batch_size 6 .*world_size 4"),
        (dict(batch_size=0), "batch_size 0"),
        (dict(rank=2, world_size=2), r"rank 2 .*0\.\.1"),
        (dict(start=7), r"start_step 7 .*0\.\.6"),
        (dict(start=-1), "start_step -1"),
        (dict(seed=-3), "-3"),
        (dict(dataset=Numbers(0)), "'numbers' is empty"),
    ],
)
def test_bad_settings_fail_at_once(change, says):
    settings = dict(dataset=Numbers(), batch_size=4, seed=0, start_step=change.pop("start", 0), total_steps=6) | change
    with pytest.raises(ValueError, match=says):
        StepBatches(transform=TRANSFORM, **settings)


def test_cache_decodes_once_and_gives_the_same():
    plain, source = Numbers(5, sizes=((20, 30), (7, 9))), Numbers(5, sizes=((20, 30), (7, 9)))
    cached = CachedDataset(source, LABELS)
    assert len(cached) == 5 and cached.labels is source.labels and cached.size(1) == (7, 9)
    assert cached.cached_bytes == 0
    for _ in range(3):
        for i in (4, 0, 3, 1, 2):
            a, b = cached.sample(i), plain.sample(i)
            assert torch.equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
            assert a.labels.dtype == np.uint8 and a.name == b.name and a.objects is None
    assert set(source.reads.values()) == {1} and cached.cached_bytes == 4 * (3 * 600 + 2 * 63)


def test_cache_is_bounded_and_keeps_the_first():
    source, one = Numbers(5), 20 * 30 * 4
    cached = CachedDataset(source, LABELS, max_bytes=2 * one + 5)
    for _ in range(3):
        [cached.sample(i) for i in range(5)]
    assert [source.reads[i] for i in range(5)] == [1, 1, 3, 3, 3] and cached.cached_bytes == 2 * one


def test_cache_of_many_classes_keeps_large_ids():
    source = Numbers(4, labels=LabelMap.default(700), sizes=((5, 5), (7, 9)))
    cached = CachedDataset(source, LABELS)
    plain = Numbers(4, labels=source.labels, sizes=source.sizes)
    for i in (0, 1, 2, 3, 0, 1):
        assert np.array_equal(cached.sample(i).labels, plain.sample(i).labels)
    assert cached.sample(1).labels.max() > 255


def test_cache_does_not_keep_a_bad_file():
    cached = CachedDataset(Numbers(3, bad=(1,)), LABELS)
    for _ in range(2):
        with pytest.raises(DataError, match="picture_1"):
            cached.sample(1)


def test_cached_pixels_survive_the_transform():
    cached = CachedDataset(Numbers(2), LABELS)
    before = cached.sample(1).image.clone(), cached.sample(1).labels.copy()
    for seed in range(10):
        changed = TrainTransform((20, 30), scale=(1, 1), flip=0, hue=0)(cached.sample(1), seed)
        changed.image.zero_()
        changed.labels[:] = 0
    assert torch.equal(before[0], cached.sample(1).image) and np.array_equal(before[1], cached.sample(1).labels)


class Pieces(Numbers):
    """Samples with segments, too, and among them one of 16 bits and one of very many segments."""

    holds = SEGMENTS

    def __init__(self, count):
        super().__init__(count)
        self.holds = SEGMENTS

    def sample(self, i):
        plain = super().sample(i)
        count = 1500 if i == 2 else 4
        ids = np.random.default_rng(i).integers(0, count + 1, self.size(i)).astype(np.int32)
        objects = Objects(ids, np.arange(count) % 11, np.arange(count) % 3 == 0)
        image = plain.image + 0.25 if i == 1 else plain.image
        return Sample(image, plain.name, plain.labels, objects)


def test_cache_keeps_segments_and_pixels_of_16_bits():
    source, plain = Pieces(4), Pieces(4)
    cached = CachedDataset(source, SEGMENTS)
    for _ in range(2):
        for i in range(4):
            a, b = cached.sample(i), plain.sample(i)
            assert torch.equal(a.image, b.image) and a.image.dtype == b.image.dtype and a.name == b.name
            assert np.array_equal(a.labels, b.labels) and np.array_equal(a.objects.ids, b.objects.ids)
            assert np.array_equal(a.objects.classes, b.objects.classes)
            assert np.array_equal(a.objects.crowd, b.objects.crowd) and a.objects.crowd.dtype == bool
    assert set(source.reads.values()) == {1}


def test_cache_can_be_sent_to_a_fresh_process():
    cached = CachedDataset(Numbers(3), LABELS)
    cached.sample(0)
    copy = pickle.loads(pickle.dumps(cached))
    assert np.array_equal(copy.sample(0).labels, cached.sample(0).labels)
    assert copy.dataset.reads[0] == 2  # its memory is its own and starts empty


def test_workers_share_the_bytes(monkeypatch):
    cached = CachedDataset(Numbers(5), LABELS, max_bytes=4 * 20 * 30 * 4)
    monkeypatch.setattr("fapn_zoo.data.cache.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    [cached.sample(i) for i in range(5)]
    assert cached.cached_bytes == 2 * 20 * 30 * 4
