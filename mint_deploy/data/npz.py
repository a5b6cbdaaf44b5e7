"""``npz:PATH``: ``x`` as float32 ``[N, C, H, W]`` or uint8 ``[N, H, W, C]``, and ``y`` ``[N]``.

``y`` may be left out; an array of strings ``class_names`` may be added. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mint_deploy.data._build import Piece, Wanted, as_labels, build, check_finite, held_out
from mint_deploy.data._part import Splits
from mint_deploy.data._stores import ArrayStore
from mint_deploy.errors import DataError

__all__ = ["TAKES", "load", "samples"]

TAKES = "FILE.npz"


def load(path: str, wanted: Wanted) -> Splits:
    """Split the samples 70 : 15 : 15, each class alike.

    Raises:
        DataError: missing, damaged, pickled, mis-shaped, not finite, or labels that do not fit.
    """
    arrays = _read(Path(path).expanduser())
    x, resize = samples(arrays["x"], path), None
    if wanted.resize is not None:
        x, resize = _resized(x, wanted.resize, path), wanted.resize
    y = as_labels(arrays["y"], len(x), path) if "y" in arrays else None
    names = _class_names(arrays.get("class_names"), path)
    whole = Piece(store=ArrayStore(x), labels=y)
    pieces = held_out(whole, wanted.seed, where=path, whole=True)
    return build(Path(path).stem, pieces, wanted, class_names=names, resize=resize)


def samples(x: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return uint8 ``[N, H, W, C]`` as it is, or floats ``[N, ...]`` as finite float32.

    Raises:
        DataError: empty, of another type or shape, NaN or Inf.
    """
    shape = list(x.shape)
    if x.ndim < 2 or not x.size:
        raise DataError(f"{where}: x has the shape {shape}; expected [N, C, H, W], N at least 1")
    if x.dtype == np.uint8:
        if x.ndim != 4 or x.shape[3] not in (1, 3):
            raise DataError(
                f"{where}: x is uint8 of shape {shape}; expected images [N, H, W, C] with 1 or 3 "
                "channels last (or float32 [N, C, H, W])"
            )
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        raise DataError(f"{where}: x is {x.dtype}; expected float32 or uint8")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf and is reported
        x = np.ascontiguousarray(x, np.float32)
    check_finite(x, where)
    return x


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise DataError(
                    f"{path} is a single array; expected what np.savez(x=..., y=...) writes"
                )
            if "x" not in stored:
                found = ", ".join(stored.files) or "nothing"
                raise DataError(f"{path} holds {found}; expected an array x (and y for labels)")
            return {name: stored[name] for name in ("x", "y", "class_names") if name in stored}
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"no data file {path}; check --data") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own for damage
        pickled = "pickle" in str(error)
        reason = "holds Python objects, which are never unpickled" if pickled else "is damaged"
        raise DataError(
            f"{path} {reason} ({type(error).__name__}); expected an npz of plain arrays"
        ) from error


def _resized(x: npt.NDArray[Any], size: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    if x.dtype != np.uint8:
        raise DataError(f"{where}: float32 samples are not resized; leave --resize out")
    height, width = size
    out = np.empty((len(x), height, width, x.shape[3]), np.uint8)
    for i, pixels in enumerate(x):
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        fitted = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
        out[i] = np.asarray(fitted).reshape(height, width, -1)
    return out


def _class_names(names: npt.NDArray[Any] | None, where: str) -> list[str] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{where}: class_names is {names.dtype} of shape {list(names.shape)}; expected strings "
            "[classes]"
        )
    return [str(name) for name in names]
