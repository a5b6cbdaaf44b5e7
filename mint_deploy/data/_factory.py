"""``file.py:factory``: torch datasets of the user's own, and what else can be taken as a Part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mint_deploy import user_code
from mint_deploy.data._build import PARTS, Piece, Wanted, as_labels, build, held_out
from mint_deploy.data._part import Part, Splits
from mint_deploy.data._stores import ArrayStore, DatasetStore, Ints
from mint_deploy.data.npz import samples
from mint_deploy.errors import DataError

__all__ = ["as_part", "as_splits", "load"]

EXPECTED = "expected (train, test) or (train, validation, test): torch datasets of x or (x, y)"


def load(spec: str, wanted: Wanted) -> Splits:
    """Call the user's function; what it does not hold out itself is split off the training part.

    Raises:
        DataError: it fails, or returns something else than datasets.
    """
    if wanted.resize is not None:
        raise DataError(f"{spec}: a factory gives samples as they are; resize in the dataset")
    made = user_code.call(user_code.load_object(spec, error=DataError), spec, error=DataError)
    place, _, function = spec.rpartition(":")
    return _splits(made, wanted, name=f"{Path(place).stem}-{function}", where=spec)


def as_splits(data: Any, *, seed: int = 0) -> Splits:
    """Take ``data`` as Splits: Splits, one thing that :func:`as_part` takes, or 2 to 3 of them.

    ``(train, test)`` or ``(train, validation, test)``; what is not there is held out of the
    training part by ``seed``. A pair of tensors or arrays whose second has one axis is ``(x, y)``.
    Samples are used as they are, except that Parts keep their normalisation.

    Raises:
        DataError: anything else, or samples that are empty, mis-shaped, one-class or not finite.
    """
    if isinstance(data, Splits):
        return data
    return _splits(data, Wanted(seed=seed), name="memory", where="the data")


def as_part(data: Any) -> Part:
    """Take ``data`` as one Part.

    ``data`` may be a Part, Splits (its train part), a tensor or array ``x``, a pair ``(x, y)``, a
    torch ``Dataset`` or a ``DataLoader`` (its dataset, whatever the loader's order).

    Raises:
        DataError: anything else, or samples that are empty, mis-shaped or not finite.
    """
    if isinstance(data, Part):
        return data
    if isinstance(data, Splits):
        return data.train
    piece = _piece(data, "the data")
    return Part("data", piece.store, labels=piece.labels)


def _splits(made: Any, wanted: Wanted, *, name: str, where: str) -> Splits:
    several = isinstance(made, (tuple, list)) and not _is_pair(made)
    given = tuple(made) if several else (made,)
    if not 1 <= len(given) <= 3:
        raise DataError(f"{where}: {len(given)} things were given; {EXPECTED}")
    kept = {1: ("train",), 2: ("train", "test"), 3: PARTS}[len(given)]
    pieces: dict[str, Piece] = {
        part: _piece(one, f"{where} ({part})" if several else where)
        for part, one in zip(kept, given, strict=True)
    }
    if "validation" not in pieces:
        whole = "test" not in pieces
        pieces |= held_out(pieces["train"], wanted.seed, where=where, whole=whole)
    mean, std = given[0].normalisation if isinstance(given[0], Part) else (None, None)
    names = getattr(given[0], "classes", None)
    named = isinstance(names, (list, tuple)) and all(isinstance(c, str) for c in names)
    return build(name, pieces, wanted, class_names=names if named else None, mean=mean, std=std)


def _is_pair(data: Any) -> bool:
    """Tell ``(x, y)`` from ``(train, test)``."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    x, y = data
    if not isinstance(x, (Tensor, np.ndarray)):
        return False
    return isinstance(y, list) or (isinstance(y, (Tensor, np.ndarray)) and y.ndim < 2)


def _piece(data: Any, where: str) -> Piece:
    if isinstance(data, Part):
        return data.piece
    if isinstance(data, torch.utils.data.DataLoader):
        if data.collate_fn is not torch.utils.data.default_collate:
            raise DataError(f"{where} is a DataLoader with its own collate_fn; give its dataset")
        data = data.dataset
    if isinstance(data, (Tensor, np.ndarray)):
        return _arrays(data, None, where)
    if (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and isinstance(data[0], (Tensor, np.ndarray))
    ):
        return _arrays(data[0], data[1], where)
    if isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) <= 2:
        return _arrays(data.tensors[0], data.tensors[1] if len(data.tensors) == 2 else None, where)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(
        data, (str, bytes, dict, list, tuple)
    ):
        raise DataError(f"{where} is a {type(data).__name__}; {EXPECTED}, with a length")
    if not len(data):
        raise DataError(f"{where} is empty; expected at least one sample")
    store = DatasetStore(data, where)
    first = store.label(0)
    if first is None:
        return Piece(store=store)
    return Piece(store=store, labels=_labels(data, store, first, where))


def _arrays(x: Any, y: Any, where: str) -> Piece:
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if array.dtype == np.uint8 and array.ndim == 4 and isinstance(x, Tensor):
        array = array.transpose(0, 2, 3, 1)  # torch keeps images as [N, C, H, W]
    array = samples(array, where)
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    return Piece(
        store=ArrayStore(array),
        labels=None if labels is None else as_labels(labels, len(array), where),
    )


def _labels(data: Any, store: DatasetStore, first: Any, where: str) -> Ints:
    """Return the labels without loading each sample where the dataset lists them itself."""
    count = len(store)
    known = _listed(data)
    if known is not None and len(known) == count:
        probes = [0, count // 2, count - 1]
        if all(np.array_equal(_number(store.label(i)), _number(known[i])) for i in probes):
            return as_labels([_number(label) for label in known], count, where)
    every = [first, *(store.label(i) for i in range(1, count))]
    return as_labels([_number(label) for label in every], count, where)


def _listed(data: Any) -> Any:
    """Return ``targets`` or ``labels`` of a dataset, also through torch's ``Subset``."""
    if isinstance(data, torch.utils.data.Subset):
        inner = _listed(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    for name in ("targets", "labels"):
        found = getattr(data, name, None)
        if isinstance(found, (list, tuple, np.ndarray, Tensor)):
            return found
    return None


def _number(label: Any) -> Any:
    """Return a tensor or array of one element as a Python number, anything else as it is."""
    if isinstance(label, Tensor):
        label = label.detach().cpu().numpy()
    return (
        label.item() if isinstance(label, (np.ndarray, np.generic)) and label.size == 1 else label
    )
