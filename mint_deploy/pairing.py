"""Which measurement belongs to which: a baseline's and today's, paired by what was measured.

A file may hold several (dense and slim, several batches, scenarios). Two belong together when label
and task agree; where each side has one label only, the labels may differ, for that is the point of
comparing two files. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mint_deploy.artifacts import Measurement, TaskSpec
from mint_deploy.errors import ConfigError, DataError

__all__ = ["Pair", "Pairing", "labelled", "pair_up", "subject", "unequal_machine", "unequal_task"]

#: the key of a task; what else differs between two of one key is refused, by name
_KEY = ("label", "scenario", "batch", "threads", "streams")


def subject(task: TaskSpec) -> str:
    """Return a task in words: ``slim, onnxruntime fp32, single_stream, batch 1, 1 thread``."""
    parts = [task.label, f"{task.runtime} {task.precision}", task.scenario, f"batch {task.batch}"]
    parts.append(f"{task.threads} thread{'s' if task.threads != 1 else ''}")
    if task.streams != 1:
        parts.append(f"{task.streams} streams")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two measurements of one task."""

    baseline: Measurement
    now: Measurement

    @property
    def name(self) -> str:
        """The task in words; where the labels differ, both."""
        first, second = self.baseline.task.label, self.now.task.label
        label = second if first == second else f"{second} against {first}"
        return subject(dataclasses.replace(self.now.task, label=label))

    @property
    def interleaved(self) -> bool:
        """Whether both were measured in turns, so that their restarts belong together."""
        a, b = self.baseline, self.now
        return (
            a.started == b.started
            and a.task.label in (b.partner or "").split(", ")
            and b.task.label in (a.partner or "").split(", ")
            and len(a.restarts_ns) == len(b.restarts_ns)
            and all(a.restarts_ns)
            and all(b.restarts_ns)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The pairs, in the order of the baseline, and what has no partner."""

    pairs: tuple[Pair, ...]
    only_baseline: tuple[Measurement, ...] = ()
    only_now: tuple[Measurement, ...] = ()


def labelled(found: Sequence[Measurement], label: str, *, where: str) -> list[Measurement]:
    """Return those called ``label``.

    Raises:
        DataError: there is none; those that there are are named.
    """
    chosen = [m for m in found if m.task.label == label]
    if not chosen:
        known = ", ".join(dict.fromkeys(m.task.label for m in found))
        raise DataError(f"{where} holds no measurement called '{label}'; it has: {known}")
    return chosen


def pair_up(baseline: Sequence[Measurement], now: Sequence[Measurement]) -> Pairing:
    """Pair two sides.

    Raises:
        ConfigError: nothing belongs together, two of one key were measured with other settings (the
            field is named), or a side holds one task twice.
        DataError: a side is empty.
    """
    for side, found in (("the baseline", baseline), ("the new side", now)):
        if not found:
            raise DataError(f"{side} holds no measurement; measure first: mint-deploy bench")
    any_label = len({m.task.label for m in baseline}) == len({m.task.label for m in now}) == 1
    _refuse_doubles(baseline)
    _refuse_doubles(now)
    pairs, alone, left = [], [], list(now)
    for a in baseline:
        partner = next((i for i, b in enumerate(left) if _same(a.task, b.task, any_label)), None)
        if partner is None:
            alone.append(a)
        else:
            pairs.append(Pair(baseline=a, now=left.pop(partner)))
    for a in alone:
        for b in left:
            _refuse_unequal(a.task, b.task, any_label=any_label)
    if not pairs:
        raise ConfigError(_nothing_paired(baseline, now, any_label=any_label))
    return Pairing(pairs=tuple(pairs), only_baseline=tuple(alone), only_now=tuple(left))


def _same(a: TaskSpec, b: TaskSpec, any_label: bool) -> bool:
    return (any_label or a.label == b.label) and not unequal_task(a, b)


def _refuse_doubles(side: Sequence[Measurement]) -> None:
    """Refuse a side that measured one task twice: it is not known which of them counts."""
    for i, a in enumerate(side):
        if any(_same(a.task, b.task, any_label=False) for b in side[:i]):
            raise ConfigError(
                f"'{subject(a.task)}' was measured more than once on one side, and it is not known "
                "which counts; keep one measurement of each task in a file"
            )


def _refuse_unequal(a: TaskSpec, b: TaskSpec, *, any_label: bool) -> None:
    """Refuse two tasks of one key that were measured with other settings."""
    key = [name for name in _KEY if not (any_label and name == "label")]
    if all(getattr(a, name) == getattr(b, name) for name in key):
        raise ConfigError(unequal(a, b))


def unequal(a: TaskSpec, b: TaskSpec) -> str:
    """Return the refusal of two tasks that differ."""
    return (
        f"these measurements are not of one task: {unequal_task(a, b)}; "
        "measure both with equal settings"
    )


def _nothing_paired(
    baseline: Sequence[Measurement], now: Sequence[Measurement], *, any_label: bool
) -> str:
    """Say why no two belong together: the labels, or the setting in which the nearest two differ."""
    near = [
        (sum(getattr(a.task, f.name) == getattr(b.task, f.name) for f in _FIELDS), i, j)
        for i, a in enumerate(baseline)
        for j, b in enumerate(now)
        if any_label or a.task.label == b.task.label
    ]
    if near:
        _, i, j = max(near, key=lambda found: found[0])
        return unequal(baseline[i].task, now[j].task)
    sides = [", ".join(dict.fromkeys(m.task.label for m in side)) for side in (baseline, now)]
    return (
        f"nothing belongs together: the baseline measured {sides[0]}, the new side {sides[1]}; "
        "choose one of each, as in base.jsonl#LABEL now.jsonl#LABEL"
    )


_FIELDS = tuple(f for f in dataclasses.fields(TaskSpec) if f.name not in ("label", "sha256"))


def unequal_task(a: TaskSpec, b: TaskSpec) -> str | None:
    """Name the first setting that differs, with both values; label and file may differ."""
    for f in _FIELDS:
        first, second = getattr(a, f.name), getattr(b, f.name)
        if first == second:
            continue
        if f.name == "flags":
            one, other = dict(first), dict(second)
            key = next(k for k in sorted({*one, *other}) if one.get(k) != other.get(k))
            return f"flag '{key}' is {one.get(key)!r} and {other.get(key)!r}"
        if f.name == "inputs":
            first, second = (
                {i.name: f"{'x'.join(map(str, i.shape))} {i.dtype}" for i in side}
                for side in (first, second)
            )
        return f"{f.name} is {first!r} and {second!r}"
    return None


def unequal_machine(a: Measurement, b: Measurement) -> str | None:
    """Name the first field of the fingerprints that differs, with both values."""
    first, second = a.machine.fingerprint(), b.machine.fingerprint()
    for name in dict.fromkeys([*first, *second]):
        value, other = first.get(name), second.get(name)
        if value == other:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            key = next(k for k in sorted({*value, *other}) if value.get(k) != other.get(k))
            what = f"version of {key}" if name == "versions" else f"{name}: {key}"
            return f"{what} is {value.get(key)!r} and {other.get(key)!r}"
        return f"{name} is {value!r} and {other!r}"
    return None
