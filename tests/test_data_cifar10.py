"""cifar10: the python batches, the pack of JPEG files, and the real images."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mint_deploy.data import load_data
from mint_deploy.data.cifar10 import CLASSES, restricted_load
from mint_deploy.errors import DataError
from mint_deploy.models._zoo import CIFAR10_CLASSES

RNG = np.random.default_rng(7)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


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


def test_grey_images_leave_colour_figures_out(tmp_path: Path) -> None:
    write_pack(tmp_path)
    data = load_data(f"cifar10:{tmp_path}", input_shape=(1, 16, 16))
    assert (data.mean, data.std, data.resize) == (None, None, (16, 16))
    assert next(data.train.batches(2))[0].shape == (2, 1, 16, 16)


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
