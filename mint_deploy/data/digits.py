"""``digits``: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; no download, no path."""

from __future__ import annotations

import numpy as np

from mint_deploy.data._build import PARTS, Piece, Wanted, as_labels, build, split
from mint_deploy.data._part import Splits
from mint_deploy.data._stores import ArrayStore
from mint_deploy.errors import DataError

__all__ = ["TAKES", "load"]

TAKES = ""
#: of the pixels in 0..1
MEAN, STD = (0.3053,), (0.3760,)


def load(path: str, wanted: Wanted) -> Splits:
    """Split the digits 60 : 20 : 20, each class alike.

    Raises:
        DataError: a path was given, or another size is wanted.
    """
    if path:
        raise DataError(f"'digits:{path}': digits come with scikit-learn; write digits alone")
    if wanted.resize is not None:
        raise DataError("digits are 8 x 8 numbers and are not resized; leave --resize out")
    from sklearn.datasets import load_digits  # a second of import, for this data alone

    data = load_digits()
    x = (np.asarray(data.images, np.float32) / np.float32(16))[:, None]
    y = as_labels(data.target, len(x), "digits")
    whole = Piece(store=ArrayStore(x), labels=y)
    pieces = split(whole, wanted.seed, names=PARTS, fractions=(0.2, 0.2), where="digits")
    names = [str(c) for c in range(10)]
    return build("digits", pieces, wanted, class_names=names, mean=MEAN, std=STD)
