"""``cifar10:PATH``: the standard python batches, or the images as a pack of JPEG files.

The pack is ``cifar10_{train,test}_jpegpack.npz.xz``: an xz-compressed npz with ``jpeg`` (uint8, all
files end to end), ``offsets`` (``[N + 1]``) and ``labels`` (uint8 ``[N]``). A
``validation_indices.npy`` beside it names the rows of the training pack that are for validation.
"""

from __future__ import annotations

import io
import lzma
import pickle  # read by the restricted unpickler below alone
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy.data._build import Piece, Wanted, as_labels, build, held_out
from mint_deploy.data._part import Splits
from mint_deploy.data._stores import ArrayStore, ImageStore, Ints
from mint_deploy.errors import DataError

__all__ = ["CLASSES", "TAKES", "load", "restricted_load"]

TAKES = "FOLDER"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
#: what networks for these images are commonly normalised by
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 32
PACK = "cifar10_{}_jpegpack.npz.xz"
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def load(path: str, wanted: Wanted) -> Splits:
    """Read labels and bytes; images of a pack are decoded when they are asked for.

    Raises:
        DataError: nothing of either kind in the folder, damaged, or a pickle with more than arrays.
    """
    root = Path(path).expanduser()
    inner = root / "cifar-10-batches-py"
    batches = inner if inner.is_dir() else root
    size = wanted.size or (SIDE, SIDE)
    resize = size if size != (SIDE, SIDE) else None
    if (root / PACK.format("train")).is_file():
        train, test = (_pack(root / PACK.format(p), wanted, size) for p in ("train", "test"))
        given: Path | None = root / "validation_indices.npy"
    elif (batches / BATCHES[0]).is_file():
        if resize is not None:
            raise DataError(f"{path}: the python batches are 32 x 32 and are not resized")
        train = _batches([batches / name for name in BATCHES])
        test = _batches([batches / "test_batch"])
        given = None
    else:
        raise DataError(
            f"{path} holds neither {PACK.format('train')} nor {BATCHES[0]}; expected the folder "
            "cifar-10-batches-py of the extracted cifar-10-python.tar.gz"
        )
    if given is not None and given.is_file():
        pieces = _as_given(train, given)
    else:
        pieces = held_out(train, wanted.seed, where=path, whole=False)
    pieces["test"] = test
    return build("cifar10", pieces, wanted, class_names=CLASSES, resize=resize, mean=MEAN, std=STD)


# ---------------------------------------------------------------- the pack of JPEG files


def _pack(path: Path, wanted: Wanted, size: tuple[int, int]) -> Piece:
    try:
        with np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False) as pack:
            jpeg, offsets, labels = (pack[name] for name in ("jpeg", "offsets", "labels"))
    except FileNotFoundError as error:
        raise DataError(f"no file {path}; the pack has a train and a test part") from error
    except Exception as error:  # lzma, zipfile, zlib and numpy each have their own for damage
        raise DataError(
            f"{path} is damaged or not a pack of images ({type(error).__name__}); expected an "
            "xz-compressed npz with jpeg, offsets and labels"
        ) from error
    at = np.asarray(offsets).reshape(-1).astype(np.int64)
    if jpeg.dtype != np.uint8 or len(at) < 2 or at[-1] > jpeg.size or (np.diff(at) <= 0).any():
        raise DataError(f"{path}: the offsets do not match the bytes; write the pack anew")
    count = len(at) - 1
    store = ImageStore(
        count,
        lambda row: jpeg[at[row] : at[row + 1]].tobytes(),
        lambda row: f"{path.name}, image {row}",
        size=size,
        channels=wanted.channels,
        fit=size != (SIDE, SIDE),
    )
    return Piece(store=store, labels=as_labels(labels, count, path.name))


def _as_given(train: Piece, indices: Path) -> dict[str, Piece]:
    """Split by the rows in ``indices``."""
    count = len(train.store)
    try:
        rows = np.load(indices, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{indices} is damaged ({error}); expected an array of rows") from error
    good = rows.ndim == 1 and rows.dtype.kind in "iu" and len(rows)
    if not good or rows.max() >= count or rows.min() < 0 or len(np.unique(rows)) != len(rows):
        raise DataError(
            f"{indices}: expected different rows in 0 .. {count - 1}, one array of them"
        )
    held = np.zeros(count, bool)
    held[rows] = True

    def of(chosen: Ints) -> Piece:
        return Piece(store=train.store, rows=chosen, labels=np.asarray(train.labels)[chosen])

    return {"train": of(np.flatnonzero(~held)), "validation": of(np.flatnonzero(held))}


# ---------------------------------------------------------------- the standard python batches


#: numpy's own function, wherever this version keeps it; being compiled, a pickle cannot alter it
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]


class _Restricted(pickle.Unpickler):
    """Admits what rebuilds a numpy array, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of three names of numpy.

        Raises:
            UnpicklingError: any other name.
        """
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _RECONSTRUCT
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def restricted_load(path: Path) -> Any:
    """Read a pickle of plain containers and numpy arrays; anything else is refused before it runs.

    Raises:
        DataError: no such file, damaged, or it asks for anything else.
    """
    try:
        with path.open("rb") as stream:
            return _Restricted(stream, encoding="bytes").load()
    except FileNotFoundError as error:
        raise DataError(
            f"no file {path}; the data set has five train batches and one test"
        ) from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than arrays ({error}), so it was refused and nothing in it was "
            "run; fetch the original cifar-10-python.tar.gz"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes ask for
        raise DataError(f"{path} is damaged ({type(error).__name__}); extract it anew") from error


def _batches(paths: list[Path]) -> Piece:
    images, labels = [], []
    for path in paths:
        body = restricted_load(path)
        if not isinstance(body, dict):
            raise DataError(f"{path} holds a {type(body).__name__}; expected data and labels")
        data, y = (body.get(k, body.get(k.encode())) for k in ("data", "labels"))
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.ndim != 2
            or data.shape[1] != 3 * SIDE * SIDE
        ):
            raise DataError(
                f"{path}: expected data as uint8 [N, 3072] (32 x 32 pixels in 3 planes)"
            )
        images.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(as_labels(y, len(data), path.name))
    return Piece(store=ArrayStore(np.concatenate(images)), labels=np.concatenate(labels))
