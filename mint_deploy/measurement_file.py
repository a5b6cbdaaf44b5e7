"""Measurements as a file: one JSON object a line, written whole, read with every damage named.

    run/measurements.jsonl    what a run folder measured, beside comparison.json
    baseline.jsonl            the same of one `bench --save-baseline`

A file is written under another name and renamed, so that a killed process leaves the old one or the
new one; a line that is cut off was cut by whoever copied it. Files of an older schema are read: what
they lack takes its default. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mint_deploy import artifacts, files
from mint_deploy._version import __version__
from mint_deploy.artifacts import Comparison, Measurement
from mint_deploy.errors import DataError

__all__ = ["NAME", "read", "save", "write"]

#: the file of a run folder
NAME = "measurements.jsonl"
_KIND = "Measurement"
_HEAD = ("kind", "schema", "written_by")
_MEASURE = "measure first: mint-deploy bench"


def write(path: str | os.PathLike[str], measurements: Sequence[Measurement]) -> None:
    """Write measurements as one file, atomically.

    Args:
        path: the file; its folder is made where absent.
        measurements: one line each, in this order.
    """
    head = {"kind": _KIND, "schema": artifacts.SCHEMA, "written_by": f"mint-deploy {__version__}"}
    lines = (json.dumps({**head, **files.encode(m)}, allow_nan=False) for m in measurements)
    with files.atomic(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save(
    folder: str | os.PathLike[str],
    measurements: Sequence[Measurement],
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Write ``measurements.jsonl``, a Measurement a line, and ``comparison.json``."""
    write(Path(folder) / NAME, measurements)
    files.write_json(
        Path(folder) / "comparison.json", {"comparisons": list(comparisons)}, kind="Comparisons"
    )


def read(path: str | os.PathLike[str]) -> list[Measurement]:
    """Read the measurements of a run folder, or of one ``.jsonl`` file (a baseline).

    Raises:
        DataError: missing, damaged, cut off, of another kind or of a newer schema; the line is named.
    """
    where = Path(path)
    where = where / NAME if where.is_dir() else where
    try:
        text = where.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}; {_MEASURE}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"cannot read {where}: it is not text ({error.reason} at byte {error.start}); "
            "expected a file that `mint-deploy bench --save-baseline` wrote"
        ) from error
    # not splitlines: a string of JSON may hold U+2028 and other ends of lines
    lines = text.split("\n")
    out = [
        _parsed(line, where, number, ends=number < len(lines))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not out:
        raise DataError(f"{where} holds no measurement; {_MEASURE}")
    return out


def _parsed(line: str, path: Path, number: int, *, ends: bool) -> Measurement:
    """One line; ``ends``: a line end follows it."""
    where = f"{path}, line {number}"
    try:
        data = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if not ends and line.lstrip().startswith("{"):
            rest = (
                f" Without that line, the {number - 1} before it can be read." if number > 1 else ""
            )
            raise DataError(
                f"{where} is damaged: the file ends in the middle of it, after {len(line)} letters. "
                f"mint-deploy writes files whole, so a copy or a download was cut off: fetch it "
                f"again, or measure anew.{rest}"
            ) from error
        raise DataError(f"{where} is damaged or not JSON ({error}); measure anew") from error
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        kind = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise DataError(
            f"{where} is not a measurement but {kind!r}; expected a file that "
            "`mint-deploy bench --save-baseline` wrote"
        )
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise DataError(f"{where} has schema {schema!r}, expected a whole number from 1 on")
    if schema > artifacts.SCHEMA:
        raise DataError(
            f"{where} has schema {schema!r}, this version reads up to {artifacts.SCHEMA}; "
            "update mint-deploy"
        )
    body = {key: value for key, value in data.items() if key not in _HEAD}
    found = files.decode(Measurement, body, where=where)
    _sane(found, where)
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _sane(m: Measurement, where: str) -> None:
    """Refuse figures that no measuring can give; they were edited, or a bit of them flipped."""
    task: dict[str, Any] = {n: getattr(m.task, n) for n in ("batch", "threads", "streams")}
    for name, value in task.items():
        if value < 1:
            raise DataError(f"{where}: task.{name} is {value}, expected 1 or more; measure anew")
    for name in ("restarts_ns", "warmup_ns", "load_ns"):
        found = getattr(m, name)
        flat = (ns for restart in found for ns in restart) if name == "restarts_ns" else iter(found)
        lowest = min(flat, default=0)
        if lowest < 0:
            raise DataError(
                f"{where}: {name} holds {lowest}, and no time is negative; measure anew"
            )
    for i, (ns, blocks) in enumerate(zip(m.restarts_ns, m.blocks, strict=False)):
        if blocks and (min(blocks) < 1 or sum(blocks) != len(ns)):
            raise DataError(
                f"{where}: blocks[{i}] speaks of {sum(blocks)} latencies, restarts_ns[{i}] holds "
                f"{len(ns)}; measure anew"
            )
