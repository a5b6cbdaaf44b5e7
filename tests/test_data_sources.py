"""npz and imagefolder: what is read, and what is refused with a clear message."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mint_deploy.data import data_names, load_data
from mint_deploy.errors import DataError, UnknownName

RNG = np.random.default_rng(7)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save_image(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(pixels(*shape)).save(path)


# ---------------------------------------------------------------- the SPEC itself


def test_the_kinds_and_a_wrong_one(tmp_path: Path) -> None:
    assert data_names() == ["cifar10", "digits", "imagefolder", "npz"]
    with pytest.raises(UnknownName, match="did you mean 'imagefolder'"):
        load_data("imagefolders:x")
    with pytest.raises(DataError, match=r"write npz:FILE\.npz"):
        load_data("npz")
    with pytest.raises(DataError, match="write digits alone"):
        load_data("digits:here")
    with pytest.raises(DataError, match="write imagefolder:"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,) * 2}, r"--mean is \[0.5, 0.5\]; expected 3 finite"),
        ({"std": (0.5, 0.0, 1.0)}, "expected numbers above 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "finite"),
        ({"input_shape": (3, 9, 9)}, "gives samples of 3 x 8 x 8, the model takes 3 x 9 x 9"),
        ({"resize": (4, 4, 4)}, "--resize"),
        ({"resize": 0}, "--resize"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: Any, message: str) -> None:
    np.savez(tmp_path / "d.npz", x=pixels(20, 8, 8, 3))
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{tmp_path}/d.npz", **settings)


# ---------------------------------------------------------------- npz


def test_npz_images_with_labels(tmp_path: Path) -> None:
    x, y = pixels(100, 8, 6, 3), np.arange(100) % 5
    np.savez(tmp_path / "d.npz", x=x, y=y, class_names=list("abcde"))
    data = load_data(f"npz:{tmp_path}/d.npz", input_shape=(3, 8, 6))
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (70, 15, 15)
    assert data.class_names == tuple("abcde")
    assert (data.mean, data.std, data.resize) == (None, None, None)
    for part in (data.train, data.validation, data.test):
        batch, labels = next(part.batches(100))
        np.testing.assert_array_equal(labels.numpy(), y[part._rows])
        np.testing.assert_allclose(
            batch.numpy(), x[part._rows].transpose(0, 3, 1, 2) / 255.0, rtol=1e-6
        )


def test_npz_numbers_without_labels(tmp_path: Path) -> None:
    x = RNG.normal(size=(30, 4, 5)).astype(np.float64)
    np.savez(tmp_path / "d.npz", x=x)
    data = load_data(f"npz:{tmp_path}/d.npz")
    assert not data.labelled
    assert data.classes is data.class_names is None
    assert data.input_shape == (4, 5)
    assert next(data.train.batches(2))[0].dtype == torch.float32


def test_the_models_normalisation_is_for_pixels(tmp_path: Path) -> None:
    model = {"model_mean": (0.5,) * 3, "model_std": (2.0,) * 3}
    own = {"mean": (1.0,) * 3, "std": (4.0,) * 3}
    np.savez(tmp_path / "pixels.npz", x=pixels(9, 4, 4, 3))
    np.savez(tmp_path / "floats.npz", x=RNG.normal(size=(9, 3, 4, 4)))
    for file, asked, mean in [
        ("pixels", model, (0.5,) * 3),
        ("pixels", {**model, **own}, (1.0,) * 3),
        ("floats", model, None),  # taken to be normalised already
        ("floats", {**model, **own}, (1.0,) * 3),
    ]:
        data = load_data(f"npz:{tmp_path}/{file}.npz", **asked)
        plain = load_data(f"npz:{tmp_path}/{file}.npz")
        assert data.mean == mean
        x, before = next(data.train.batches(9))[0], next(plain.train.batches(9))[0]
        want = before if mean is None else (before - mean[0]) / (4.0 if mean[0] == 1 else 2.0)
        torch.testing.assert_close(x, want)


def test_npz_resizes_pixels_and_says_so(tmp_path: Path) -> None:
    for channels in (1, 3):
        np.savez(tmp_path / "d.npz", x=pixels(20, 8, 8, channels))
        data = load_data(f"npz:{tmp_path}/d.npz", resize=(16, 12))
        assert data.input_shape == (channels, 16, 12)
        assert data.resize == (16, 12)


def test_digest_sees_content_and_labels(tmp_path: Path) -> None:
    x, y = pixels(16, 4, 4, 3), np.arange(16) % 2

    def digest(x: np.ndarray, y: np.ndarray) -> str:
        np.savez(tmp_path / "d.npz", x=x, y=y)
        return load_data(f"npz:{tmp_path}/d.npz").digest

    first = digest(x, y)
    assert digest(x, y) == first
    changed = x.copy()
    changed[0] ^= 1
    assert digest(changed, y) != first
    assert digest(x, 1 - y) != first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 2))}, "holds images; expected an array x"),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, "N at least 1"),
        ({"x": np.zeros(9, np.float32)}, r"shape \[9\]"),
        ({"x": np.zeros((9, 3, 8, 8), np.uint8)}, "with 1 or 3 channels last"),
        ({"x": np.zeros((9, 3), np.int64)}, "x is int64; expected float32 or uint8"),
        ({"x": np.full((9, 3), np.inf, np.float32)}, "sample 0 holds NaN or Inf"),
        ({"x": np.full((9, 3), 1e300)}, "sample 0 holds NaN or Inf"),
        ({"x": np.eye(9), "y": np.arange(8)}, r"labels of shape \[8\] for 9 samples"),
        ({"x": np.eye(9), "y": np.eye(9, dtype=int)}, r"labels of shape \[9, 9\]"),
        ({"x": np.eye(9), "y": np.arange(9.0)}, "labels are float64; expected whole numbers"),
        ({"x": np.eye(9), "y": np.arange(9) - 1}, "label -1 of sample 0 is out of range"),
        ({"x": np.eye(9), "y": np.full(9, 1 << 40)}, "is out of range"),
        ({"x": np.eye(9), "y": np.ones(9, int)}, "every training label is '1'"),
        ({"x": np.eye(9), "y": np.arange(9) % 3, "class_names": ["a", "b"]}, "label 2, but only 2"),
        ({"x": np.eye(9), "class_names": np.zeros(2)}, "class_names is float64"),
        ({"x": np.eye(2)}, "2 samples in 1 classes are too few"),
        ({"x": np.array([{}, {}], dtype=object)}, "never unpickled"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{tmp_path}/d.npz")


def test_npz_nan_is_found_wherever_it_is(tmp_path: Path) -> None:
    x = np.zeros((3000, 2, 2), np.float32)
    x[2500, 1, 0] = np.nan
    np.savez(tmp_path / "d.npz", x=x)
    with pytest.raises(DataError, match="sample 2500 holds NaN"):
        load_data(f"npz:{tmp_path}/d.npz")


def test_npz_missing_damaged_or_no_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        load_data(f"npz:{tmp_path}/none.npz")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="is damaged"):
        load_data(f"npz:{tmp_path}/d.npz")
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        load_data(f"npz:{tmp_path}/d.npy")


# ---------------------------------------------------------------- imagefolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, n in (("cat", 30), ("ant", 20)):
        for i in range(n):
            save_image(tmp_path / "pets" / kind / f"{i:02}.png")
    return tmp_path / "pets"


def test_imagefolder_is_split_by_class(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    data = load_data(f"imagefolder:{folder}")
    assert data.name == "pets"
    assert data.class_names == ("ant", "cat")
    assert data.input_shape == (3, 12, 10)
    assert data.resize is None
    assert data.test is not None
    assert np.bincount(data.train.labels).tolist() == [14, 22]
    assert np.bincount(data.test.labels).tolist() == [3, 4]
    x, y = next(data.train.batches(1))
    first = np.asarray(Image.open(sorted((folder / "ant").iterdir())[data.train._rows[0]]))
    np.testing.assert_allclose(x[0].numpy(), first.transpose(2, 0, 1) / 255.0, rtol=1e-6)
    assert y.tolist() == [0]
    assert load_data(f"imagefolder:{folder}").digest == data.digest


def test_imagefolder_is_brought_to_the_models_shape(folder: Path) -> None:
    save_image(folder / "cat" / "other.jpg", (40, 20))
    data = load_data(f"imagefolder:{folder}", input_shape=(1, 16, 16))
    assert data.input_shape == (1, 16, 16)
    assert data.resize == (16, 16)
    assert sum(len(x) for x, _ in data.train.batches(8)) == len(data.train)
    with pytest.raises(DataError, match=r"other\.jpg is 40 x 20, expected 12 x 10"):
        load_data(f"imagefolder:{folder}")


def test_resize_covers_and_cuts_the_centre_out(tmp_path: Path) -> None:
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255  # the middle third is white
    for i in range(4):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "flat" / f"{i}.png")
    data = load_data(f"imagefolder:{tmp_path}/flat", resize=20)
    x = next(data.train.batches(1))[0]
    assert float(x.mean()) > 0.95
    assert float(x.min()) > 0.7  # the edge of the white part, interpolated


def test_imagefolder_with_parts(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(folder, root / "train")
    save_image(root / "val" / "cat" / "v.png")
    save_image(root / "test" / "ant" / "t.png")
    data = load_data(f"imagefolder:{root}")
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 1, 1)
    assert data.validation.labels.tolist() == [1]
    shutil.rmtree(root / "val")
    data = load_data(f"imagefolder:{root}")
    assert (len(data.train), len(data.validation)) == (45, 5)
    shutil.rmtree(root / "test")
    assert load_data(f"imagefolder:{root}").test is None  # none is made of what it may have seen
    save_image(root / "val" / "dog" / "v.png")
    with pytest.raises(DataError, match="validation part has the class 'dog', train has not"):
        load_data(f"imagefolder:{root}")
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="held-out folders but no 'train'"):
        load_data(f"imagefolder:{root}")


def test_a_flat_folder_is_unlabelled(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder / 'cat'}")
    assert not data.labelled
    assert data.train.labels is None
    assert len(data.train) == 22


def test_imagefolder_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_data(f"imagefolder:{tmp_path}/none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path}/empty")
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match="dog holds no images; remove the folder"):
        load_data(f"imagefolder:{folder}")
    save_image(folder / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png\) beside folders"):
        load_data(f"imagefolder:{folder}")
    with pytest.raises(DataError, match="image files give 1 x H x W or 3 x H x W"):
        load_data(f"imagefolder:{folder / 'cat'}", input_shape=(4, 8, 8))


def test_one_class_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "ant")
    with pytest.raises(DataError, match="every training label is 'cat'"):
        load_data(f"imagefolder:{folder}")


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "cat" / "07.png").write_bytes(b"this is no image")
    with pytest.raises(DataError, match=r"07\.png cannot be read as an image"):
        load_data(f"imagefolder:{folder}")
    whole = (folder / "cat" / "08.png").read_bytes()
    (folder / "cat" / "07.png").write_bytes(whole[:-200])  # the header is in order
    data = load_data(f"imagefolder:{folder}")
    with pytest.raises(DataError, match=r"07\.png cannot be read as an image"):
        [list(part.batches(100)) for part in (data.train, data.validation, data.test) if part]


def test_odd_image_modes(tmp_path: Path) -> None:
    root = tmp_path / "modes"
    save_image(root / "a.png", mode="L")
    save_image(root / "b.png")
    Image.fromarray(pixels(12, 10, 3)).quantize(8).save(root / "c.png", transparency=0)
    Image.fromarray(pixels(12, 10, 4)).save(root / "d.png")
    assert next(load_data(f"imagefolder:{root}").train.batches(4))[0].shape[1:] == (3, 12, 10)
    Image.fromarray(pixels(12, 10).astype(np.uint16) * 256).save(root / "e.png")
    with pytest.raises(DataError, match=r"e\.png has more than 8 bits a channel"):
        load_data(f"imagefolder:{root}")
