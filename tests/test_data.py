"""Parts: batches, augmentation, balance, splits; and what as_part takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from mint_deploy.data import Part, as_part, as_splits, load_data
from mint_deploy.data._stores import ArrayStore
from mint_deploy.errors import DataError


def images(n: int = 40, side: int = 16, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def part(n: int = 40, **settings: Any) -> Part:
    return Part("train", ArrayStore(images(n)), labels=np.arange(n) % 4, **settings)


def together(data: Part, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*data.batches(16, **settings), strict=True)
    return torch.cat(xs), torch.cat(ys)


# ---------------------------------------------------------------- batches


def test_images_become_normalised_channels_first() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    x, y = together(part(mean=mean, std=std))
    want = images().transpose(0, 3, 1, 2) / 255.0
    want = (want - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    np.testing.assert_allclose(x.numpy(), want, rtol=1e-5, atol=1e-6)
    assert y.dtype == torch.int64
    assert y.tolist() == [i % 4 for i in range(40)]


def test_numbers_are_used_as_they_are() -> None:
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    data = Part("train", ArrayStore(x), mean=[1.0] * 7)
    (batch, labels), *rest = data.batches(8, augment=True)
    assert not rest
    assert labels is None
    np.testing.assert_array_equal(batch.numpy(), x - np.float32(1))
    batch.zero_()
    np.testing.assert_array_equal(next(data.batches(8))[0].numpy(), x - np.float32(1))


def test_a_seed_decides_order_and_augmentation() -> None:
    data = part()
    plain, y = together(data)
    first, y1 = together(data, seed=3, augment=True)
    again, y2 = together(data, seed=3, augment=True)
    other, y3 = together(data, seed=4, augment=True)
    assert torch.equal(first, again)
    assert torch.equal(y1, y2)
    assert not torch.equal(first, other)
    assert not torch.equal(y1, y)
    assert sorted(y1.tolist()) == sorted(y.tolist()) == sorted(y3.tolist())
    assert torch.equal(plain, together(data)[0])
    shuffled, _ = together(data, seed=3)
    assert sorted(shuffled.sum((1, 2, 3)).tolist()) == sorted(plain.sum((1, 2, 3)).tolist())


def test_last_batch_is_dropped_on_request() -> None:
    assert [len(x) for x, _ in part().batches(16)] == [16, 16, 8]
    assert [len(x) for x, _ in part().batches(16, drop_last=True)] == [16, 16]
    with pytest.raises(DataError, match="batches of 0"):
        next(part().batches(0))


def shifts(before: np.ndarray, after: np.ndarray, pad: int) -> tuple[int, int, bool] | None:
    """Find (down, right, mirrored) that turn one image [C, H, W] into the other, if any do."""
    side = before.shape[1]
    padded = np.pad(before, ((0, 0), (pad, pad), (pad, pad)))
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            crop = padded[:, y : y + side, x : x + side]
            for mirrored in (False, True):
                if np.array_equal(crop[:, :, ::-1] if mirrored else crop, after):
                    return y, x, mirrored
    return None


@pytest.mark.parametrize(
    ("side", "channels", "kind", "pad", "mirrors"),
    [
        (32, 3, np.uint8, 4, True),
        (16, 3, np.float32, 2, True),
        (8, 1, np.float32, 1, False),  # digits
        (12, 3, np.uint8, 1, False),
        (32, 1, np.uint8, 4, False),  # letters have a left and a right
    ],
)
def test_augmentation_shifts_and_mirrors(
    side: int, channels: int, kind: Any, pad: int, mirrors: bool
) -> None:
    raw = images(60, side, channels)
    if kind is np.float32:
        raw = raw.transpose(0, 3, 1, 2).astype(np.float32)
    data = Part("train", ArrayStore(raw))
    plain = next(data.batches(60))[0].numpy()
    changed = next(data.batches(60, augment=True))[0].numpy()
    found = [shifts(a, b, pad) for a, b in zip(plain, changed, strict=True)]
    assert None not in found
    assert {f[0] for f in found if f} == set(range(2 * pad + 1))
    assert {f[1] for f in found if f} == set(range(2 * pad + 1))
    assert {f[2] for f in found if f} == ({False, True} if mirrors else {False})


# ---------------------------------------------------------------- subsets


def test_balanced_takes_as_many_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 3])
    data = Part("train", ArrayStore(images(83)), labels=labels)
    for images_wanted, counts in [(9, [3, 3, 3]), (31, [14, 14, 3]), (83, [50, 30, 3])]:
        got = Counter(data.balanced(images_wanted, seed=1).labels.tolist())
        assert sum(got.values()) == images_wanted
        assert all(abs(got[c] - n) <= 1 for c, n in enumerate(counts)), got
    assert len(data.balanced(2, seed=1)) == 2
    assert len(data.balanced(1000, seed=1)) == 83


def test_balanced_is_mixed_seeded_and_without_repetition() -> None:
    data = part(40)
    a, b, c = (next(data.balanced(20, seed=s).batches(20))[0] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len(torch.unique(a.flatten(1), dim=0)) == 20
    assert data.balanced(20, seed=1).labels.tolist() != sorted(data.balanced(20, 1).labels.tolist())
    unlabelled = Part("train", ArrayStore(images(10)))
    assert len(unlabelled.balanced(6, seed=0)) == 6
    with pytest.raises(DataError, match="0 images"):
        data.balanced(0, seed=0)


def test_subset_counts_within_the_part() -> None:
    inner = part(40).subset(range(20, 40)).subset([0, 5])
    assert inner.labels.tolist() == [0, 1]
    whole = next(part(40).batches(40))[0]
    assert torch.equal(next(inner.batches(2))[0], whole[[20, 25]])
    with pytest.raises(DataError, match="sample 20 of part"):
        part(20).subset([3, 20])


# ---------------------------------------------------------------- digits


def test_digits_are_kept_apart_and_split_alike() -> None:
    data = load_data("digits")
    assert data.input_shape == (1, 8, 8)
    assert data.classes == 10
    assert data.labelled
    parts = [p for p in (data.train, data.validation, data.test) if p is not None]
    rows = [set(p._rows.tolist()) for p in parts]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 1797
    for p in parts:
        counts = np.bincount(p.labels)
        assert counts.min() >= 0.16 * counts.sum() / 1.8
    x = torch.cat([x for x, _ in data.train.batches(500)])
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    assert load_data("digits").digest == data.digest
    assert load_data("digits", seed=1).digest != data.digest


def test_digits_fit_their_network() -> None:
    from mint_deploy.models import load_model

    model = load_model("resnet8-digits")
    data = load_data(model.default_data or "", input_shape=model.input_shape, mean=model.mean)
    assert (data.mean, data.std, data.class_names) == (model.mean, model.std, model.class_names)


# ---------------------------------------------------------------- as_part and the user's datasets


class Shapes(Dataset[Any]):
    """Items like torchvision's: a tensor and a whole number; noise as a random transform."""

    def __init__(self, n: int, *, labelled: bool = True, noise: bool = False) -> None:
        self.x = torch.arange(n * 12, dtype=torch.float32).view(n, 3, 2, 2)
        self.labelled, self.noise, self.loaded = labelled, noise, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        self.loaded += 1
        x = self.x[i] + (torch.rand(3, 2, 2) + np.random.rand() if self.noise else 0)  # noqa: NPY002
        return (x, i % 3) if self.labelled else x


class Listing(Shapes):
    """Lists its labels, as most datasets do."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.targets = [i % 3 for i in range(n)]


def test_as_part_takes_what_people_have() -> None:
    x, y = torch.rand(12, 3, 2, 2), torch.arange(12) % 3
    data = load_data("digits")
    assert as_part(data) is data.train
    assert as_part(data.test) is data.test
    for given in ((x, y), TensorDataset(x, y), DataLoader(TensorDataset(x, y), 5), [x, y.numpy()]):
        got = as_part(given)
        assert torch.equal(next(got.batches(12))[0], x)
        assert got.labels.tolist() == y.tolist()
    for given in (x, x.numpy(), TensorDataset(x)):
        assert as_part(given).labels is None
        assert torch.equal(next(as_part(given).batches(12))[0], x)
    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    torch.testing.assert_close(next(as_part(pixels).batches(4))[0], pixels / 255)


def test_as_splits_keeps_parts_apart() -> None:
    x, y = torch.rand(100, 3, 2, 2), torch.arange(100) % 2
    whole = as_splits((x, y), seed=1)
    assert whole.test is not None
    assert [len(p) for p in (whole.train, whole.validation, whole.test)] == [68, 16, 16]
    assert as_splits(whole) is whole
    assert as_splits((x, y), seed=1).digest == whole.digest != as_splits((x, y), seed=2).digest
    for given in (
        (TensorDataset(x, y), TensorDataset(x[:9], y[:9])),
        (DataLoader(TensorDataset(x, y)), (x[:9], y[:9])),
        (as_part((x, y)), as_part((x[:9], y[:9]))),
    ):
        two = as_splits(given)
        assert two.test is not None
        assert [len(p) for p in (two.train, two.validation, two.test)] == [90, 10, 9]
        assert two.labelled
    bare = as_splits((x, x[:9]))
    assert bare.test is not None
    assert (len(bare.test), bare.labelled) == (9, False)
    digits = load_data("digits")
    again = as_splits(digits.train)
    assert (again.mean, again.std) == (digits.mean, digits.std)
    assert len(again.train) + len(again.validation) + len(again.test or ()) == len(digits.train)
    with pytest.raises(DataError, match="4 things were given"):
        as_splits((x, x, x, x))


@pytest.mark.parametrize("given", [5, "digits", {"x": 1}, iter([1]), [torch.rand(2)] * 3, None])
def test_as_part_refuses_the_rest(given: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        as_part(given)


def test_a_loader_with_its_own_collate_is_refused() -> None:
    with pytest.raises(DataError, match="collate_fn"):
        as_part(DataLoader(Shapes(5), collate_fn=lambda b: b))


def test_dataset_labels_come_from_its_list_where_it_has_one() -> None:
    listing, plain = Listing(90), Shapes(90)
    subset = Subset(Listing(90), list(range(89, -1, -1)))
    assert as_part(listing).labels.tolist() == as_part(plain).labels.tolist()
    assert as_part(subset).labels.tolist() == as_part(plain).labels.tolist()[::-1]
    assert listing.loaded < 10
    lying = Listing(90)
    lying.targets = [5] * 90  # a target_transform changes what comes out
    assert as_part(lying).labels.tolist() == as_part(plain).labels.tolist()
    assert as_part(Shapes(5, labelled=False)).labels is None


def test_random_transforms_follow_the_seed_and_leave_the_generators_alone() -> None:
    before = torch.get_rng_state()
    data = as_part(Shapes(20, noise=True))
    a, c = (next(data.batches(20, seed=s))[0] for s in (1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)  # somebody else draws in between
    np.random.rand()  # noqa: NPY002
    assert torch.equal(next(data.batches(20, seed=1))[0], a)
    assert not torch.equal(a.sort(0)[0], c.sort(0)[0])


FACTORY = """
import torch
from torch.utils.data import TensorDataset

def data(n, labelled=True):
    x, y = torch.rand(n, 3, 4, 4), torch.arange(n) % 2
    return TensorDataset(x, y) if labelled else TensorDataset(x)

def two(): return data(40), data(10)
def three(): return data(40), data(10), data(10)
def one(): return data(40)
def bare(): return data(40, False), data(10, False)
def mixed(): return data(40), data(10, False)
def four(): return [data(4)] * 4
def single_class(): return TensorDataset(torch.rand(9, 3, 4, 4), torch.zeros(9).long()), data(10)
def fails(): raise RuntimeError("no disk")
def wrong(): return "train", "test"
def empty(): return TensorDataset(torch.rand(0, 2)), data(10)
def nan(): return torch.full((9, 2), float("nan")), torch.rand(9, 2)
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "own_data.py").write_text(FACTORY)
    return f"{tmp_path}/own_data.py"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("two", (36, 4, 10)), ("three", (40, 10, 10)), ("one", (28, 6, 6)), ("bare", (36, 4, 10))],
)
def test_own_factory(factory: str, name: str, sizes: tuple[int, ...]) -> None:
    data = load_data(f"{factory}:{name}")
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert data.labelled == (name != "bare")
    assert data.name == f"own_data-{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixed", "test has no labels"),
        ("four", "4 things were given"),
        ("single_class", "every training label is '0'"),
        ("fails", r"raised RuntimeError: no disk \(.*own_data\.py, line 16\)"),
        ("wrong", r"\(train\) is a str; expected \(train, test\)"),
        ("empty", r"shape \[0, 2\]"),
        ("nan", "sample 0 holds NaN or Inf"),
        ("missing", "has no 'missing'"),
    ],
)
def test_own_factory_that_fails(factory: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"{factory}:{name}")


def test_items_that_do_not_fit_are_named() -> None:
    class Odd(Shapes):
        def __getitem__(self, i: int) -> Any:
            if i == 3:
                return self.x[i][:, :1], 0
            if i == 4:
                return self.x[i] * float("nan"), 0
            if i == 5:
                raise OSError("gone")
            return super().__getitem__(i)

    data = as_part(Subset(Odd(5), [0, 1, 2, 3]))
    with pytest.raises(DataError, match=r"item 3 has the shape \[3, 1, 2\]"):
        list(data.batches(4))
    with pytest.raises(DataError, match="item 1 holds NaN"):
        list(as_part(Subset(Odd(5), [0, 4])).batches(4))
    with pytest.raises(DataError, match="item 5 raised OSError: gone"):
        as_part(Odd(6))
