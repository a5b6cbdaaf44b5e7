"""From stores and labels to checked Splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mint_deploy.data._part import Part, Piece, Splits
from mint_deploy.data._stores import Ints
from mint_deploy.errors import DataError

__all__ = [
    "PARTS",
    "Piece",
    "Wanted",
    "as_labels",
    "build",
    "check_finite",
    "held_out",
    "split",
    "times",
]

PARTS = ("train", "validation", "test")
#: more classes than anybody has: a label beyond is a mistake
MAX_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller asks of the data; ``resize`` is ``(height, width)``."""

    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    model_mean: tuple[float, ...] | None = None
    model_std: tuple[float, ...] | None = None
    resize: tuple[int, int] | None = None
    seed: int = 0

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour) for images, as the model wants them; 3 if it does not say."""
        if self.input_shape is None:
            return 3
        if len(self.input_shape) != 3 or self.input_shape[0] not in (1, 3):
            raise DataError(
                f"the model takes {times(self.input_shape)}, image files give 1 x H x W or "
                "3 x H x W; give the data as npz: or file.py:factory"
            )
        return self.input_shape[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """The side lengths that images should have: as asked for, else as the model takes."""
        if self.resize is not None or self.input_shape is None or len(self.input_shape) != 3:
            return self.resize
        return self.input_shape[1], self.input_shape[2]


def build(
    name: str,
    pieces: Mapping[str, Piece],
    wanted: Wanted,
    *,
    class_names: Sequence[str] | None = None,
    resize: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Splits:
    """Check the pieces against each other and the model, and make Splits of them.

    Args:
        name: what the data set is called in results.
        pieces: ``train``, ``validation``, ``test`` (may be absent).
        wanted: what the caller asked for.
        class_names: of the labels 0, 1, ...
        resize: what images are brought to, if anything was needed.
        mean: of the data, where the caller gives none.
        std: of the data, where the caller gives none.

    Raises:
        DataError: an empty part, one class, a label without a name, a shape or mean that differs.
    """
    shape = pieces["train"].store.shape
    if len(mean or ()) != shape[0]:
        mean = std = None  # figures of colour images say nothing of the same read as grey
    if pieces["train"].store.pixels:  # float samples are taken to be normalised already
        mean, std = wanted.model_mean or mean, wanted.model_std or std
    mean, std = wanted.mean or mean, wanted.std or std
    parts: dict[str, Part] = {}
    for key, piece in pieces.items():
        rows = np.arange(len(piece.store)) if piece.rows is None else piece.rows
        if not len(rows):
            raise DataError(f"{name}: the {key} part is empty; expected at least one sample")
        parts[key] = Part(key, piece.store, rows=rows, labels=piece.labels, mean=mean, std=std)
    for part in parts.values():
        if part.input_shape != shape:
            raise DataError(
                f"{name}: the {part.name} part is {times(part.input_shape)}, train is "
                f"{times(shape)}; bring both to one shape"
            )
    if wanted.input_shape is not None and shape != wanted.input_shape:
        raise DataError(
            f"{name} gives samples of {times(shape)}, the model takes "
            f"{times(wanted.input_shape)}; use other data, or --input if the model takes both"
        )
    _check_normalisation(name, mean, std, shape[0])
    names = tuple(class_names) if class_names is not None else None
    classes = _check_classes(name, parts, names)
    digest = hashlib.sha256(f"{name}{names}".encode())
    for part in parts.values():
        part._feed(digest)  # noqa: SLF001  # of this package
    return Splits(
        name=name,
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        classes=classes,
        class_names=(names or tuple(map(str, range(classes)))) if classes is not None else None,
        mean=mean,
        std=std,
        resize=resize,
        input_shape=shape,
        digest=digest.hexdigest(),
        labelled=classes is not None,
    )


def _check_normalisation(
    name: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> None:
    for what, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise DataError(
                f"--{what} is {list(values)}; expected {channels} finite numbers, one for each "
                f"channel of {name}"
            )
    if std is not None and min(std) <= 0:
        raise DataError(f"--std is {list(std)}; expected numbers above 0")


def _check_classes(
    name: str, parts: Mapping[str, Part], names: tuple[str, ...] | None
) -> int | None:
    """Return the number of classes, or None where nothing is labelled."""
    labelled = {key for key, part in parts.items() if part.labels is not None}
    if not labelled:
        return None
    if labelled != parts.keys():
        bare = ", ".join(sorted(parts.keys() - labelled))
        raise DataError(
            f"{name}: {bare} has no labels, {', '.join(sorted(labelled))} has; label all or none"
        )
    highest = max(int(np.max(_labels(part))) for part in parts.values())
    if names is not None and highest >= len(names):
        raise DataError(f"{name}: label {highest}, but only {len(names)} class names (0 to "
                        f"{len(names) - 1}); expected labels that count from 0")  # fmt: skip
    present = np.unique(_labels(parts["train"]))
    if len(present) < 2:
        only = names[present[0]] if names else int(present[0])
        raise DataError(
            f"{name}: every training label is '{only}'; expected two classes or more (without any "
            "labels the data is still good for scoring and distillation)"
        )
    return len(names) if names is not None else highest + 1


def _labels(part: Part) -> Ints:
    return np.asarray(part.labels, np.int64)


def as_labels(y: Any, count: int, where: str) -> Ints:
    """Return ``y`` as int64 ``[count]``.

    Raises:
        DataError: of another length or shape, not whole numbers, or negative (the row is named).
    """
    try:
        labels = np.asarray(y)
    except ValueError:  # entries of different lengths
        labels = np.empty(0)
    if labels.shape != (count,):
        raise DataError(
            f"{where}: labels of shape {list(labels.shape)} for {count} samples; expected "
            f"[{count}], one class number each"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype}; expected whole numbers from 0")
    wrong = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: label {int(labels[row])} of sample {row} is out of range; expected class "
            "numbers from 0"
        )
    return labels.astype(np.int64)


def check_finite(x: npt.NDArray[Any], where: str) -> None:
    """Check that float samples ``[N, ...]`` are finite.

    Raises:
        DataError: NaN or Inf; the first sample with one is named.
    """
    for start in range(0, len(x), 1024):  # no second array of the full size
        good = np.isfinite(x[start : start + 1024]).reshape(len(x[start : start + 1024]), -1)
        if not good.all():
            row = start + int(np.flatnonzero(~good.all(1))[0])
            raise DataError(
                f"{where}: sample {row} holds NaN or Inf; expected finite numbers: mend it"
            )


def _divide(
    count: int, labels: Ints | None, seed: int, *, fractions: Sequence[float], where: str
) -> list[Ints]:
    """Split ``count`` rows at random: the rest first, then one part for each of ``fractions``.

    With labels each class is split alike; a class with too few samples stays in the first part.

    Raises:
        DataError: too few samples for every part to have one.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    groups = (
        [np.arange(count)]
        if labels is None
        else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    )
    parts: list[list[Ints]] = [[] for _ in range(len(fractions) + 1)]
    for group in groups:
        rows = rng.permutation(group)
        for i, fraction in enumerate(fractions):
            size = max(1, round(fraction * len(group))) if len(group) > len(fractions) else 0
            parts[i + 1].append(rows[:size])
            rows = rows[size:]
        parts[0].append(rows)
    out = [np.sort(np.concatenate(p)) if p else np.empty(0, np.int64) for p in parts]
    if not all(len(p) for p in out):
        raise DataError(
            f"{where}: {count} samples in {len(groups)} classes are too few to keep training and "
            f"held-out parts apart; expected at least {len(fractions) + 1} samples of some class"
        )
    return out


def split(
    piece: Piece, seed: int, *, names: Sequence[str], fractions: Sequence[float], where: str
) -> dict[str, Piece]:
    """Split a piece into ``names``: the first gets the rest, each other its fraction."""
    rows = np.arange(len(piece.store)) if piece.rows is None else piece.rows
    labels = piece.labels
    chosen = _divide(len(rows), labels, seed, fractions=fractions, where=where)
    return {
        name: Piece(store=piece.store, rows=rows[c], labels=None if labels is None else labels[c])
        for name, c in zip(names, chosen, strict=True)
    }


def held_out(train: Piece, seed: int, *, where: str, whole: bool) -> dict[str, Piece]:
    """Split validation off the training part, and test as well where there is but one part."""
    if whole:
        return split(train, seed, names=PARTS, fractions=(0.15, 0.15), where=where)
    return split(train, seed, names=PARTS[:2], fractions=(0.1,), where=where)


def times(shape: Sequence[int]) -> str:
    """``(3, 32, 32)`` -> ``3 x 32 x 32``."""
    return " x ".join(map(str, shape)) or "a single number"
