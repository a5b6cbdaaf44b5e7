"""What each release of TensorRT calls its flags, in one table, and what it can do at all.

``trtexec`` changed its flags and its defaults between releases: what it measured end to end in 10
it measures on the GPU alone in 11, and ``--fp16`` is gone.

    weak typing     the builder chooses the types: --fp16, --int8 (8.5 to 10)
    strong typing   the types stand in the ONNX file: casts, quantisation nodes (10 and 11)

From samples/common/sampleOptions.cpp of each release of NVIDIA/TensorRT; the tests hold the table
against the options that each of them parses. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mint_deploy.errors import ConfigError

__all__ = ["DIALECTS", "MEANING", "Dialect", "dialect_of", "has_dla", "version_of"]

#: what a figure of ``trtexec`` means here, under every release
MEANING = {"transfers": False, "cuda_graph": True, "spin_wait": True, "separate_profile_run": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the releases from ``since`` on call their flags; an empty text is the default.

    ``weak``: precision -> flags of a weakly typed build. ``strong``: flags of a build that takes
    the types from the file; None: there is none. ``network``: typing -> the flag with which the
    Python API makes its network. ``measuring``: setting -> the flags for (on, off).
    """

    name: str
    since: tuple[int, int]
    build_only: str
    level: str
    weak: Mapping[str, tuple[str, ...]]
    strong: tuple[str, ...] | None
    network: Mapping[str, str]
    streams: str
    measuring: Mapping[str, tuple[str, str]]


_WEAK = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--fp16")}
_OPT_IN = {
    "transfers": ("", "--noDataTransfers"),
    "cuda_graph": ("--useCudaGraph", ""),
    "spin_wait": ("--useSpinWait", ""),
    "separate_profile_run": ("--separateProfileRun", ""),
}
#: 11 turned all four round; it still accepts the flags of 10 and ignores them with a warning
_OPT_OUT = {
    "transfers": ("--includeDataTransfers", ""),
    "cuda_graph": ("", "--noCudaGraph"),
    "spin_wait": ("", "--noSpinWait"),
    "separate_profile_run": ("", ""),
}
_LEVEL = "--builderOptimizationLevel"

#: oldest first; from samples/common/sampleOptions.cpp of each release of NVIDIA/TensorRT
DIALECTS = (
    Dialect(
        name="8.5", since=(8, 5), build_only="--buildOnly", level="", weak=_WEAK, strong=None,
        network={"weak": "EXPLICIT_BATCH"}, streams="--streams", measuring=_OPT_IN,
    ),
    Dialect(
        name="8.6", since=(8, 6), build_only="--skipInference", level=_LEVEL, weak=_WEAK,
        strong=None, network={"weak": "EXPLICIT_BATCH"}, streams="--infStreams", measuring=_OPT_IN,
    ),
    Dialect(
        name="10", since=(10, 0), build_only="--skipInference", level=_LEVEL, weak=_WEAK,
        strong=("--stronglyTyped",), network={"weak": "", "strong": "STRONGLY_TYPED"},
        streams="--infStreams", measuring=_OPT_IN,
    ),
    Dialect(
        name="11", since=(11, 0), build_only="--skipInference", level=_LEVEL, weak={}, strong=(),
        network={"strong": "STRONGLY_TYPED"}, streams="--infStreams", measuring=_OPT_OUT,
    ),
)  # fmt: skip
_NEWEST = 11

#: the releases with support for the Deep Learning Accelerator: from the first up to the second
_DLA_RELEASES = (((8, 5, 0), (10, 8, 0)), ((11, 4, 1), (12, 0, 0)))


def version_of(version: str) -> tuple[int, int, int]:
    """Return major, minor and patch of a version such as ``10.3`` or ``8.5.2``."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if found is None:
        raise ConfigError(f"'{version}' is no TensorRT version; expected one such as 10.3")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def dialect_of(version: str) -> Dialect:
    """Return the dialect of a TensorRT version such as ``10.3`` or ``8.5.2``.

    Raises:
        ConfigError: not a version, or one that no dialect here is known for.
    """
    number = version_of(version)[:2]
    known = [d for d in DIALECTS if d.since <= number]
    if not known or number[0] > _NEWEST or number[0] == 9:
        raise ConfigError(
            f"TensorRT {version} is not known here; known are 8.5, 8.6, 10 and {_NEWEST}; build "
            "with trtexec by hand, or use one of these"
        )
    return known[-1]


def has_dla(version: str) -> bool:
    """Whether this release drives the Deep Learning Accelerator of a board that has one."""
    return any(first <= version_of(version) < end for first, end in _DLA_RELEASES)
