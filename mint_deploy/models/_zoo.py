"""What a file in this folder says about the networks it defines.

Every module here whose name has no leading underscore carries ``ZOO: dict[str, Entry]``; dropping
a file in adds its names to the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

__all__ = ["CIFAR10_CLASSES", "IMAGENET_MEAN", "IMAGENET_STD", "Entry"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR10_CLASSES = (
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One network of the zoo.

    ``input_shape`` has no batch: ``(C, H, W)``. ``mean`` and ``std`` are per channel, of pixels in
    0..1. ``default_data`` is a data SPEC that needs no path, for networks that come with one.
    ``rename`` maps a tensor name of published weight files to the name here.
    """

    factory: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    default_data: str | None = None
    rename: Callable[[str], str] | None = None
