"""What a data SPEC on the command line becomes: train, validation and test parts as batches.

    digits              scikit-learn's digits
    cifar10:FOLDER      the python batches, or a pack of JPEG files
    imagefolder:FOLDER  a folder of image files for each class
    npz:FILE.npz        arrays x and y
    file.py:factory     torch datasets of the user's own

A file here without a leading underscore is one kind of SPEC; dropping a file in adds it. It has
``TAKES`` (what follows the colon) and ``load(path, wanted) -> Splits``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from mint_deploy import user_code
from mint_deploy.data import _factory
from mint_deploy.data._build import Wanted
from mint_deploy.data._factory import as_part, as_splits
from mint_deploy.data._part import Part, Splits, balanced_rows
from mint_deploy.errors import DataError, UnknownName

__all__ = ["Part", "Splits", "as_part", "as_splits", "balanced_rows", "data_names", "load_data"]


def load_data(
    spec: str,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model_mean: Sequence[float] | None = None,
    model_std: Sequence[float] | None = None,
    resize: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Read what ``spec`` names.

    Args:
        spec: ``digits``, ``cifar10:FOLDER``, ``imagefolder:FOLDER``, ``npz:FILE`` or
            ``file.py:factory``.
        input_shape: what the model takes, ``(C, H, W)``; image files are brought to it.
        mean: per channel, subtracted from pixels in 0..1 (from float samples as they are).
        std: the same, divided by.
        model_mean: what the model was trained with, used where ``mean`` is None and the samples are
            images of 0..255; float samples are taken to be normalised already. Without either:
            what belongs to the data, or nothing.
        model_std: the same, divided by.
        resize: side, or ``(height, width)``: each image is scaled to cover it, its centre cut out.
        seed: of the split, where the data has none of its own.

    Raises:
        UnknownName: no such kind of data.
        DataError: data that is missing, damaged, empty, mis-shaped, one-class or not finite.
    """
    wanted = Wanted(
        input_shape=None if input_shape is None else tuple(int(n) for n in input_shape),
        mean=_floats(mean),
        std=_floats(std),
        model_mean=_floats(model_mean),
        model_std=_floats(model_std),
        resize=_size(resize),
        seed=seed,
    )
    kind, _, path = spec.partition(":")
    if kind not in data_names():
        if "." in kind and user_code.is_reference(spec):
            return _factory.load(spec, wanted)
        if Path(spec).exists():
            like = "npz" if Path(spec).suffix == ".npz" else "imagefolder"
            raise DataError(f"'{spec}' does not say what kind of data it is; write {like}:{spec}")
        raise UnknownName("data", kind, data_names())
    module = importlib.import_module(f"{__name__}.{kind}")
    if module.TAKES and not path:
        raise DataError(f"'{spec}' names no place; write {kind}:{module.TAKES}")
    splits: Splits = module.load(path, wanted)
    return splits


def data_names() -> list[str]:
    """Return the kinds of data, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)


def _size(resize: int | Sequence[int] | None) -> tuple[int, int] | None:
    if resize is None:
        return None
    sides = (resize, resize) if isinstance(resize, int) else tuple(resize)
    if len(sides) != 2 or not all(isinstance(s, int) and 1 <= s <= 16384 for s in sides):
        raise DataError(f"--resize is {resize}; expected one side or height and width in pixels")
    return sides[0], sides[1]
