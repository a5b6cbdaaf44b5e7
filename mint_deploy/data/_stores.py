"""Where samples lie before they become batches: arrays, encoded images, or a torch Dataset.

``take(rows, seed)`` gives uint8 ``[n, H, W, C]`` (an image of 0..255) or float32 ``[n, ...]``
(numbers that are used as they are).
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from mint_deploy.errors import DataError

__all__ = ["ArrayStore", "DatasetStore", "ImageStore", "Ints", "Store"]

Ints = npt.NDArray[np.int64]

#: decoded images are kept in memory up to this size; beyond it they are decoded each time
CACHE_BYTES = 1 << 30
#: fewer images than this are decoded without threads
POOLED = 64


class Store(Protocol):
    """A source of samples by row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, channels first."""

    @property
    def pixels(self) -> bool:
        """Whether samples are images of 0..255, brought to 0..1, and so not yet normalised."""

    def __len__(self) -> int: ...

    def take(self, rows: Ints, seed: int) -> npt.NDArray[Any]:
        """Return the samples of ``rows``; ``seed`` decides what is random in them, if anything."""

    def fingerprint(self, row: int) -> bytes:
        """Return bytes that change with the sample's content."""


class ArrayStore:
    """Samples in memory: uint8 ``[N, H, W, C]`` images or float32 ``[N, ...]``."""

    def __init__(self, x: npt.NDArray[Any]) -> None:
        self.x = x
        self.pixels = x.dtype == np.uint8
        rest = x.shape[1:]
        self.shape: tuple[int, ...] = (rest[-1], *rest[:-1]) if x.dtype == np.uint8 else rest

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Ints, seed: int) -> npt.NDArray[Any]:  # noqa: ARG002  # nothing random
        """Return a copy of the rows."""
        return self.x[rows]

    def fingerprint(self, row: int) -> bytes:
        """Return the sample's bytes."""
        return bytes(self.x[row].tobytes())


class ImageStore:
    """Encoded images, decoded by threads when they are first asked for and then kept in memory.

    Args:
        count: how many images there are.
        read: row -> the bytes of the file.
        name: row -> what to call the image in an error message.
        size: ``(height, width)`` of every sample.
        channels: 3 (RGB) or 1 (grey).
        fit: scale each image so that it covers ``size`` and cut the centre out; without it an
            image of another size is an error.
    """

    def __init__(
        self,
        count: int,
        read: Callable[[int], bytes],
        name: Callable[[int], str],
        *,
        size: tuple[int, int],
        channels: int = 3,
        fit: bool = False,
    ) -> None:
        self._count, self._read, self._name = count, read, name
        self._size, self._fit = size, fit
        self.pixels = True
        self._mode = "RGB" if channels == 3 else "L"
        self.shape: tuple[int, ...] = (channels, *size)
        keep = count * channels * size[0] * size[1] <= CACHE_BYTES
        self._cache = np.empty((count, *size, channels), np.uint8) if keep else None
        self._done = np.zeros(count, bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def take(self, rows: Ints, seed: int) -> npt.NDArray[Any]:  # noqa: ARG002  # nothing random
        """Decode what is not in memory yet and return uint8 ``[n, H, W, C]``."""
        if self._cache is None:
            out = np.empty((len(rows), *self._size, self.shape[0]), np.uint8)
            self._decode_all(rows, np.arange(len(rows)), out)
            return out
        with self._lock:
            new = np.unique(rows[~self._done[rows]])
            if len(new):
                self._decode_all(new, new, self._cache)
                self._done[new] = True
        return self._cache[rows]

    def fingerprint(self, row: int) -> bytes:
        """Return the bytes of the encoded image."""
        return self._read(row)

    def check(self, limit: int) -> None:
        """Read the headers of up to ``limit`` images, evenly spread.

        Raises:
            DataError: one is no image or of another size; it is named.
        """
        rows = np.unique(np.linspace(0, self._count - 1, min(limit, self._count)).astype(np.int64))

        def look(span: range) -> None:
            for i in span:
                row = int(rows[i])
                self._fits(parse_image(self._read(row), self._name(row)), row)

        self._pooled(look, len(rows))

    def _fits(self, image: Image.Image, row: int) -> bool:
        """Tell whether the image has the right size; raise where it must have."""
        height, width = self._size
        if image.size == (width, height):
            return True
        if not self._fit:
            raise DataError(
                f"{self._name(row)} is {image.height} x {image.width}, expected {height} x "
                f"{width} as of the others; give --resize to bring all to one size"
            )
        return False

    def _decode_all(self, rows: Ints, slots: Ints, out: npt.NDArray[np.uint8]) -> None:
        def run(span: range) -> None:
            for i in span:
                out[slots[i]] = self._decode(int(rows[i]))

        self._pooled(run, len(rows))

    def _pooled(self, run: Callable[[range], None], count: int) -> None:
        """Call ``run`` on spans of ``0 .. count``, in threads where there is enough to do."""
        workers = min(len(os.sched_getaffinity(0)), 8)
        if count < POOLED or workers == 1:
            run(range(count))
            return
        step = max(32, count // (workers * 8))
        spans = [range(i, min(i + step, count)) for i in range(0, count, step)]
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(run, spans):
                pass

    def _decode(self, row: int) -> npt.NDArray[np.uint8]:
        image = open_image(self._read(row), self._name(row), self._mode)
        height, width = self._size
        if not self._fits(image, row):
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(height, width, -1)


def parse_image(data: bytes, name: str) -> Image.Image:
    """Read an image's header.

    Raises:
        DataError: not an image, or of more than 8 bits a channel; ``name`` is named.
    """
    with _named(name):
        image = Image.open(io.BytesIO(data))
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name} has more than 8 bits a channel (mode {image.mode}); expected an 8-bit image: "
            "convert it, or give the data as npz: with float32"
        )
    return image


def open_image(data: bytes, name: str, mode: str) -> Image.Image:
    """Decode an image to ``RGB`` or ``L``.

    Raises:
        DataError: not an image, damaged, or of more than 8 bits a channel; ``name`` is named.
    """
    image = parse_image(data, name)
    with _named(name):
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert(mode)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what Pillow raises into a DataError that names the image."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}); mend or remove the file"
        ) from error


class DatasetStore:
    """The items of a user's torch ``Dataset``: ``x`` or ``(x, y)`` with ``x`` a tensor or array.

    A uint8 ``x [C, H, W]`` counts as an image of 0..255, anything else is used as float32.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        with seeded(0):
            first, _ = self._raw(0)
        self.shape: tuple[int, ...] = first.shape
        self.pixels = first.dtype == np.uint8

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, rows: Ints, seed: int) -> npt.NDArray[Any]:
        """Return float32 ``[n, ...]``; the datasets' own random transforms follow ``seed``."""
        with seeded(seed):
            return np.stack([self._sample(int(row)) for row in rows])

    def fingerprint(self, row: int) -> bytes:
        """Return the sample's bytes."""
        with seeded(0):
            return self._sample(row).tobytes()

    def label(self, row: int) -> Any:
        """Return the second entry of the item, or None where there is none."""
        with seeded(0):
            return self._raw(row)[1]

    def _sample(self, row: int) -> npt.NDArray[np.float32]:
        raw, _ = self._raw(row)
        x = raw.astype(np.float32)
        if raw.dtype == np.uint8:
            x /= np.float32(255)
        if x.shape != self.shape:
            raise DataError(
                f"{self._name}: item {row} has the shape {list(x.shape)}, expected "
                f"{list(self.shape)} as of item 0; bring all items to one size"
            )
        if not np.isfinite(x).all():
            raise DataError(f"{self._name}: item {row} holds NaN or Inf; expected finite numbers")
        return x

    def _raw(self, row: int) -> tuple[npt.NDArray[Any], Any]:
        """Return the item as an array, uint8 or float, and its label or None."""
        try:
            item = self._dataset[row]
        except Exception as error:  # the user's code
            raise DataError(
                f"{self._name}: item {row} raised {type(error).__name__}: {error}"
            ) from error
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        x, y = item if pair else (item, None)
        if not isinstance(x, (torch.Tensor, np.ndarray)):
            raise DataError(
                f"{self._name}: item {row} is a {type(x).__name__}; expected a tensor x or a pair "
                "(x, y): convert images to tensors in the dataset"
            )
        array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise DataError(f"{self._name}: item {row} is {array.dtype}; expected float or uint8")
        return array, y


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python for a while, then put them back."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  # datasets use it
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  # the same
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002  # the same
        random.setstate(before[2])
