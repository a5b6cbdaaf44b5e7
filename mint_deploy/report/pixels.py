r"""Cells as a picture: a colour scale whose steps look equal, and a PNG small enough to stand in a page.

The scale runs from dark blue over green to light yellow. It is a curve in OKLCH (Björn Ottosson, 2020, *A
perceptual color space for image processing*): lightness 0.25 to 0.93, hue 300° to 100°, chroma
``0.09 + 0.15 (t - 0.4)^2``, all within sRGB, walked at constant speed, so that equal steps of value are
equal steps of OKLab distance. Lightness grows all along, so it reads in grey, on paper and for those who confuse
red and green.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import Floats

__all__ = ["BAR", "colours", "picture", "png"]

Bytes = npt.NDArray[np.uint8]

#: colours of the scale; 0 is kept for "no value"
COLOURS = 255
_WALK = 4096


def colours(count: int = COLOURS) -> Bytes:
    """Return the scale as sRGB ``[count, 3]``, dark first."""
    t = np.linspace(0.0, 1.0, _WALK)
    lightness, hue = 0.25 + 0.68 * t, np.radians(300 - 200 * t)
    chroma = 0.09 + 0.15 * (t - 0.4) ** 2
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.linspace(0.0, walked[-1], count)
    points = np.stack([np.interp(even, walked, lab[:, i]) for i in range(3)], axis=1)
    return np.rint(255 * _srgb(points)).astype(np.uint8)


def _srgb(lab: Floats) -> Floats:
    """Return OKLab ``[n, 3]`` as sRGB in 0 to 1."""
    to_cones = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0.0, 1.0)
    bent = 1.055 * linear ** (1 / 2.4) - 0.055
    encoded: Floats = np.where(linear <= 0.0031308, 12.92 * linear, bent)
    return encoded


def png(levels: Bytes) -> bytes:
    """Return ``levels [rows, columns]`` as a PNG: 0 is transparent, 1 to 255 the scale."""
    rows, columns = levels.shape
    palette = np.concatenate([np.zeros((1, 3), np.uint8), colours()]).tobytes()
    lines = np.concatenate(
        [np.zeros((rows, 1), np.uint8), levels], axis=1
    )  # filter 0 on every line
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def picture(levels: Bytes) -> str:
    """Return :func:`png` as an address that a page holds itself."""
    return "data:image/png;base64," + base64.b64encode(png(levels)).decode()


#: the scale, as a picture of one row
BAR = picture(np.arange(1, COLOURS + 1, dtype=np.uint8)[None, :])
