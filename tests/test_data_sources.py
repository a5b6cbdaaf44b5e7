"""npz, imagefolder and cifar10: what is read, and what is refused with a clear message."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mint_deploy.data import data_names, load_data
from mint_deploy.data.cifar10 import CLASSES, restricted_load
from mint_deploy.errors import DataError, UnknownName
from mint_deploy.models._zoo import CIFAR10_CLASSES

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


# ---------------------------------------------------------------- cifar10


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """Pickle a batch opcode by opcode as Python 2 wrote the original ones."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + b"M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text(b"data") + array + text(b"labels") + numbers
    return b"\x80\x02}(" + items + text(b"batch_label") + text(b"batch 1 of 5") + b"u."


def write_batches(root: Path, per_batch: int = 20) -> np.ndarray:
    """Write six batches in the original form and return their pixels."""
    root.mkdir(parents=True, exist_ok=True)
    everything = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = pixels(per_batch, 3072)
        everything.append(data)
        (root / name).write_bytes(python2_batch(data, [i % 10 for i in range(per_batch)]))
    return np.concatenate(everything)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_python_batches(tmp_path: Path) -> None:
    data_bytes = write_batches(tmp_path / "cifar-10-batches-py")
    data = load_data(f"cifar10:{tmp_path}", input_shape=(3, 32, 32), mean=(0,) * 3, std=(1,) * 3)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert data.class_names == CLASSES == CIFAR10_CLASSES
    x, y = next(data.test.batches(20))
    want = data_bytes[-20:].reshape(20, 3, 32, 32) / 255.0
    np.testing.assert_allclose(x.numpy(), want, rtol=1e-6)
    assert y.tolist() == [i % 10 for i in range(20)]
    assert load_data(f"cifar10:{tmp_path}/cifar-10-batches-py").digest == data.digest


def test_a_hostile_batch_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    write_batches(tmp_path)
    marker = tmp_path / "marker"
    for body in ({b"data": Payload(marker)}, [np.zeros(3), Payload(marker)]):
        (tmp_path / "data_batch_3").write_bytes(pickle.dumps(body, protocol=4))
        with pytest.raises(DataError, match=r"posix\.mkdir\), so it was refused and nothing"):
            load_data(f"cifar10:{tmp_path}")
    assert not marker.exists()
    for text in (b"cbuiltins\neval\n.", b"cnumpy\nload\n.", b"cnumpy.core.multiarray\nfromfile\n."):
        (tmp_path / "data_batch_3").write_bytes(text)
        with pytest.raises(DataError, match="refused"):
            restricted_load(tmp_path / "data_batch_3")


def test_a_batch_cannot_alter_what_rebuilds_arrays(tmp_path: Path) -> None:
    # BUILD with a slot state sets attributes of whatever stands on the stack
    code = b"cnumpy.core.multiarray\n_reconstruct\n(N}X\x04\x00\x00\x00evilK\x01stb."
    (tmp_path / "b").write_bytes(b"\x80\x02" + code)
    with pytest.raises(DataError, match="is damaged"):
        restricted_load(tmp_path / "b")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([1, 2], "holds a list"),
        ({b"labels": [1]}, "expected data as uint8"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, "expected data as uint8"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "labels of shape"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "labels of shape"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "label 10, but only 10"),
    ],
)
def test_batches_that_do_not_fit(tmp_path: Path, body: object, message: str) -> None:
    write_batches(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(body, protocol=4))
    with pytest.raises(DataError, match=message):
        load_data(f"cifar10:{tmp_path}")


def test_cifar_folder_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the folder cifar-10-batches-py"):
        load_data(f"cifar10:{tmp_path}")
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}")
    with pytest.raises(DataError, match="test_batch is damaged"):
        load_data(f"cifar10:{tmp_path}")
    (tmp_path / "test_batch").unlink()
    with pytest.raises(DataError, match="no file"):
        load_data(f"cifar10:{tmp_path}")


def write_pack(root: Path, count: int = 100) -> list[bytes]:
    for name in ("train", "test"):
        files = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(pixels(32, 32, 3)).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        pack = io.BytesIO()
        np.savez(
            pack,
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]).astype(np.uint32),
            labels=np.repeat(np.arange(10, dtype=np.uint8), count // 10),
        )
        (root / f"cifar10_{name}_jpegpack.npz.xz").write_bytes(
            lzma.compress(pack.getvalue(), preset=0)
        )
    return files


def test_jpeg_pack_and_its_validation_split(tmp_path: Path) -> None:
    files = write_pack(tmp_path)
    held = np.arange(5, 100, 10, dtype=np.uint16)
    np.save(tmp_path / "validation_indices.npy", held)
    data = load_data(f"cifar10:{tmp_path}", mean=(0,) * 3, std=(1,) * 3)
    assert data.validation._rows.tolist() == held.tolist()
    assert len(data.train) == 90
    assert not set(held.tolist()) & set(data.train._rows.tolist())
    assert data.test is not None
    x, _ = next(data.test.batches(100))  # more than 64: threads
    for i in (0, 40, 99):
        want = np.asarray(Image.open(io.BytesIO(files[i]))).transpose(2, 0, 1) / 255.0
        np.testing.assert_allclose(x[i].numpy(), want, rtol=1e-6)
    assert torch.equal(next(data.test.batches(100))[0], x)
    (tmp_path / "validation_indices.npy").unlink()
    assert np.bincount(load_data(f"cifar10:{tmp_path}").validation.labels).tolist() == [1] * 10


def test_only_what_is_asked_for_is_decoded(tmp_path: Path) -> None:
    write_pack(tmp_path)
    data = load_data(f"cifar10:{tmp_path}")
    done = data.train._store._done  # type: ignore[attr-defined]  # a look inside: laziness
    assert not done.any()
    next(data.train.subset([3, 4]).batches(2))
    assert done.sum() == 2


def test_damaged_packs(tmp_path: Path) -> None:
    write_pack(tmp_path)
    path = tmp_path / "cifar10_train_jpegpack.npz.xz"
    whole = path.read_bytes()
    for held in (np.array([5, 5]), np.array([100]), np.array([]), np.array([0.5])):
        np.save(tmp_path / "validation_indices.npy", held)
        with pytest.raises(DataError, match=r"expected different rows in 0 \.\. 99"):
            load_data(f"cifar10:{tmp_path}")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or not a pack"):
        load_data(f"cifar10:{tmp_path}")
    pack = io.BytesIO()
    np.savez(pack, jpeg=np.zeros(5, np.uint8), offsets=np.array([0, 9]), labels=np.zeros(1, int))
    path.write_bytes(lzma.compress(pack.getvalue(), preset=0))
    with pytest.raises(DataError, match="offsets do not match"):
        load_data(f"cifar10:{tmp_path}")


# ---------------------------------------------------------------- the real images


def test_real_images_and_real_weights_agree(shared_data: Path) -> None:
    from mint_deploy.models import load_model

    model = load_model(
        "resnet56-cifar10", shared_data / "weights" / "resnet56-cifar10-jpeg.safetensors"
    )
    data = load_data(
        f"cifar10:{shared_data / 'cifar10'}",
        input_shape=model.input_shape,
        mean=model.mean,
        std=model.std,
    )
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert np.bincount(data.validation.labels).tolist() == [500] * 10
    sample = data.validation.balanced(500, seed=0)
    right = 0
    with torch.inference_mode():
        for x, y in sample.batches(250):
            assert y is not None
            right += int((model.model(x).argmax(1) == y).sum())
    assert 0.84 < right / 500 < 0.93  # 88.34 % on all 5,000
