"""``imagefolder:PATH``: image files in one folder for each class.

``PATH/train``, ``PATH/val`` (or ``validation``, ``valid``) and ``PATH/test`` where they are there,
else ``PATH`` itself, split by a seed. A folder of images without class folders is unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mint_deploy.data._build import Piece, Wanted, build, held_out
from mint_deploy.data._part import Splits
from mint_deploy.data._stores import ImageStore, Ints, open_image
from mint_deploy.errors import DataError

__all__ = ["SUFFIXES", "TAKES", "load"]

TAKES = "FOLDER"
#: so many headers are read before the work begins; the rest is looked at when it is decoded
CHECKED = 20_000
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VALIDATION = ("val", "validation", "valid")


def load(path: str, wanted: Wanted) -> Splits:
    """Find the images and their classes; nothing but the first is decoded yet.

    Raises:
        DataError: no such folder, no images, an empty class, classes that differ between parts.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder {path}; expected one that holds a folder of images per class")
    found = {
        "train": _subfolder(root, ("train",)),
        "validation": _subfolder(root, VALIDATION),
        "test": _subfolder(root, ("test",)),
    }
    if found["train"] is None:
        if found["validation"] is not None or found["test"] is not None:
            raise DataError(
                f"{path} has held-out folders but no 'train'; add it, or name one folder"
            )
        found = {"train": root, "validation": None, "test": None}
    folders = {name: folder for name, folder in found.items() if folder is not None}
    listed = {name: _list(folder) for name, folder in folders.items()}
    names = _class_names(path, listed)
    size, resize = _size(listed["train"][0][0], wanted)
    pieces: dict[str, Piece] = {}
    for name, (files, classes) in listed.items():
        store = _store(files, size, wanted, fit=resize is not None)
        store.check(CHECKED)
        pieces[name] = Piece(store=store, labels=_labels(classes, names))
    if "validation" not in pieces:
        pieces |= held_out(pieces["train"], wanted.seed, where=path, whole=folders["train"] == root)
    return build(root.resolve().name, pieces, wanted, class_names=names, resize=resize)


def _subfolder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _list(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Return the image files, sorted, and the class of each (None: a flat folder)."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = sorted(p for p in folder.iterdir() if _is_image(p))
    if loose and classes:
        raise DataError(
            f"{folder} holds images ({loose[0].name}) beside folders ({classes[0].name}); expected "
            "a folder for each class, or images alone for unlabelled data"
        )
    if not loose and not classes:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) and no folders")
    if loose:
        return loose, None
    files: list[Path] = []
    labels: list[str] = []
    for one in classes:
        inside = sorted(p for p in one.rglob("*") if _is_image(p))
        if not inside:
            raise DataError(
                f"{one} holds no images; remove the folder, or put the class's images in"
            )
        files += inside
        labels += [one.name] * len(inside)
    return files, labels


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _class_names(
    path: str, listed: dict[str, tuple[list[Path], list[str] | None]]
) -> list[str] | None:
    trained = listed["train"][1]
    names = None if trained is None else sorted(set(trained))
    for part, (_, classes) in listed.items():
        unknown = sorted(set(classes or ()) - set(names or ()))
        if unknown and names is not None:
            raise DataError(
                f"{path}: the {part} part has the class '{unknown[0]}', train has not; expected "
                f"the classes {', '.join(names[:10])}"
            )
    return names


def _labels(classes: list[str] | None, names: list[str] | None) -> Ints | None:
    if classes is None or names is None:
        return None
    known = {name: i for i, name in enumerate(names)}
    return np.array([known[name] for name in classes], np.int64)


def _size(first: Path, wanted: Wanted) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the size of every sample, and the same if images have to be brought to it."""
    image = open_image(_bytes(first), str(first), "RGB")
    if wanted.size is None:
        return (image.height, image.width), None
    return wanted.size, wanted.size


def _store(files: list[Path], size: tuple[int, int], wanted: Wanted, *, fit: bool) -> ImageStore:
    return ImageStore(
        len(files),
        lambda row: _bytes(files[row]),
        lambda row: str(files[row]),
        size=size,
        channels=wanted.channels,
        fit=fit,
    )


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check its rights") from error
