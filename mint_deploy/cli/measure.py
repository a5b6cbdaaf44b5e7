"""The command that measures: ``bench``, of a run folder or of files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_deploy.cli import options as o
from mint_deploy.cli import show
from mint_deploy.errors import ConfigError, Interrupted, PromiseBroken

if TYPE_CHECKING:
    from mint_deploy.artifacts import Comparison
    from mint_deploy.cli.measured import Found
    from mint_deploy.progress import Progress

__all__ = ["bench"]

#: what a sweep takes where --batch does not say it
_SWEEP = "1,2,4,8,16,32"

Files = Annotated[
    list[Path],
    typer.Argument(
        help="One run folder, or ONNX files (with several, each against the first).",
        metavar="RUN|FILE ...",
        show_default=False,
    ),
]
_PLAIN = {"show_default": False}


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """The flags, checked; ``limit`` is of the file that is judged, as a fraction."""

    paths: list[Path]
    against: Path | None
    runtime: str
    scenario: str
    streams: int | None
    batches: list[int]
    threads: int
    restarts: int
    seconds: float
    half_width: float | None
    limit: float | None

    @property
    def edge(self) -> float | None:
        """Where the ratio of the others to the first may not be, less one.

        With ``--against`` the first file is judged, so that the ratio is turned around.
        """
        if self.limit is None or self.against is None:
            return self.limit
        return 1 / (1 + self.limit) - 1


def bench(
    context: typer.Context,
    files: Files,
    against: Annotated[
        Path | None, typer.Option(help="Measure this file in turns with the first.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="A runtime that runs files.")] = "onnxruntime",
    scenario: Annotated[
        str, typer.Option(help="single_stream, multi_stream (bursts) or offline (throughput).")
    ] = "single_stream",
    streams: Annotated[
        int | None, typer.Option(help="Queries of a burst (multi_stream): 8.", **_PLAIN)
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help=f"Samples a query: 1; offline: {_SWEEP}.", **_PLAIN)
    ] = None,
    threads: Annotated[int, typer.Option(help="Compute threads of a session.")] = 1,
    restarts: Annotated[int, typer.Option(help="Process restarts at least.")] = 5,
    seconds: Annotated[float, typer.Option(help="Time for everything.")] = 60.0,
    half_width: Annotated[
        str, typer.Option(help="Restarts end at this interval; 0: exactly --restarts.")
    ] = "1%",
    max_latency: Annotated[
        str | None,
        typer.Option(
            help="How much slower than --against (or the first) is allowed, such as +5%: restarts "
            "end when that is decided; broken: exit code 1.",
            **_PLAIN,
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(help="Write the measurements here, for `compare`.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with pictures here.", **_PLAIN)
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure a run's networks, or ONNX files, in fresh processes that take turns."""
    from mint_deploy import progress

    teller = progress.for_terminal(quiet=quiet)
    if any(path.is_dir() for path in files):
        _of_run(context, files, against, save_baseline, teller, as_json=json)
        return
    asked = _Asked(
        paths=[*files, *([against] if against is not None else [])],
        against=against,
        runtime=runtime,
        scenario=scenario,
        streams=streams,
        batches=_batches(batch, scenario),
        threads=threads,
        restarts=restarts,
        seconds=seconds,
        half_width=_percent("--half-width", half_width) or None,
        limit=None if max_latency is None else _percent("--max-latency", max_latency),
    )
    _check(asked)
    from mint_deploy.cli import measured

    found = measured.Found()
    with teller.stage("bench", f"measure {' and '.join(str(f) for f in asked.paths)}"):
        _measure(asked, found, teller)
    if measured.fast(found.measured):
        from mint_deploy.bench import overhead_ns

        found.overhead_ns = overhead_ns(streams=found.measured[0].task.streams)
    if save_baseline is not None and found.measured:
        from mint_deploy.measurement_file import write

        write(save_baseline, found.measured)
    if html is not None and found.measured:
        _page(html, found)
    if json:
        show.print_json(measured.body(found))
    else:
        print("\n".join(measured.lines(found)))
    _end(found)


def _of_run(
    context: typer.Context,
    files: list[Path],
    against: Path | None,
    save_baseline: Path | None,
    teller: Progress,
    *,
    as_json: bool,
) -> None:
    """Measure a run folder, whose settings are its own."""
    from mint_deploy import pipeline
    from mint_deploy.measurement_file import NAME

    if len(files) > 1 or against is not None:
        raise ConfigError("bench measures one run folder, or files; not a folder with others")
    for name in ("runtime", "scenario", "streams", "batch", "threads", "restarts", "seconds",
                 "half_width", "max_latency", "html"):  # fmt: skip
        if _given(context, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is for files; the run {files[0]} is measured with its "
                f"own settings: bench {files[0] / 'model.onnx'}, or leave it out"
            )
    done = pipeline.advance(files[0], "bench", progress=teller)
    if save_baseline is not None:
        from mint_deploy.files import atomic

        text = (files[0] / NAME).read_text(encoding="utf-8")
        with atomic(save_baseline) as part:
            part.write_text(text, encoding="utf-8")
    show.result(done, as_json=as_json, stage="bench")


def _given(context: typer.Context, name: str) -> bool:
    """Whether a flag was written, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


# ---------------------------------------------------------------- what was asked for


def _batches(text: str | None, scenario: str) -> list[int]:
    text = text or (_SWEEP if scenario == "offline" else "1")
    try:
        return list(dict.fromkeys(int(n) for n in text.split(",")))
    except ValueError:
        raise ConfigError(f"--batch is '{text}', expected whole numbers such as 1,8") from None


def _percent(flag: str, text: str) -> float:
    """Read a flag that is a percentage, or 0, as a fraction."""
    from mint_deploy.limits import parse_limit

    try:
        found = parse_limit(text)
    except ConfigError:
        found = None
    if found is None or not (found.relative or found.value == 0):
        raise ConfigError(f"{flag} is '{text}', expected a percentage such as 1%")
    return found.value


def _check(asked: _Asked) -> None:
    """Refuse what makes no sense before anything is measured."""
    from mint_deploy._bench_base import streams_of

    streams_of(asked.scenario, asked.streams)
    if asked.half_width is not None and asked.half_width < 0:
        raise ConfigError(f"--half-width is {100 * asked.half_width:g}%, expected 0 or more")
    if asked.limit is not None and len(asked.paths) < 2:
        raise ConfigError("--max-latency needs a file to hold against: give --against FILE")
    if asked.limit is not None and asked.against is not None and len(asked.paths) > 2:
        raise ConfigError(
            "--max-latency with --against judges one file; it was given "
            f"{len(asked.paths) - 1}: {', '.join(map(str, asked.paths[:-1]))}"
        )


def _labels(paths: list[Path]) -> list[str]:
    """File names where they differ, whole paths where they do not."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{paths[0]} is named twice; expected files that differ")
    return [str(path) for path in paths]


# ---------------------------------------------------------------- the measuring


def _measure(asked: _Asked, found: Found, teller: Progress) -> None:
    """Fill ``found``; Ctrl-C leaves in it what was measured, if there is any."""
    from mint_deploy.bench import MeasuringStopped, Throughput

    named = dict(zip(_labels(asked.paths), asked.paths, strict=True))
    swept = asked.scenario == "offline" and len(asked.batches) > 1
    try:
        if swept and len(named) == 1:
            _sweep(asked, named, found, teller)
        else:
            _in_turns(asked, named, found, teller)
    except MeasuringStopped as stopped:
        found.measured += stopped.measured
        found.compared += stopped.compared
        found.interrupted = str(stopped)
    except KeyboardInterrupt:
        if not found.measured:
            raise
        found.interrupted = "interrupted: what was whole by then is kept"
    from mint_deploy.profile_layers import with_figures

    found.measured = [with_figures(m, named[m.task.label]) for m in found.measured]
    for label in named if swept else ():
        mine = tuple(m for m in found.measured if m.task.label == label)
        done = Throughput(measurements=mine)
        if done.knee is not None:
            low, high = done.knee_range or (None, None)
            found.knees[label] = {"knee": done.knee, "low": low, "high": high}


def _in_turns(asked: _Asked, named: dict[str, Path], found: Found, teller: Progress) -> None:
    from mint_deploy.bench import interleave

    for size in asked.batches:
        measured, compared = interleave(
            named,
            runtime=asked.runtime,
            scenario=asked.scenario,
            streams=asked.streams,
            threads=asked.threads,
            batch=size,
            restarts=asked.restarts,
            half_width=asked.half_width,
            limit=asked.edge,
            budget_s=asked.seconds / len(asked.batches),
            progress=teller.step,
        )
        found.measured += measured
        found.compared += compared
        if asked.limit is not None:
            found.verdicts += [_verdict(asked, c, size) for c in compared]


def _verdict(asked: _Asked, c: Comparison, batch: int) -> dict[str, str]:
    """Judge a comparison by its interval: pass, fail, or inconclusive where it holds the limit."""
    low, high, label, base = c.low, c.high, c.b, c.a
    if asked.against is not None:
        low, high, label, base = 1 / c.high, 1 / c.low, c.a, c.b
    most = 1 + (asked.limit or 0.0)
    state = "pass" if high <= most else "fail" if low > most else "inconclusive"
    where = f" at batch {batch}" if len(asked.batches) > 1 else ""
    return {
        "state": state,
        "text": f"{label} takes {low:.3f} to {high:.3f} of the time of {base}{where}, "
        f"at most {most:g} was allowed",
    }


def _sweep(asked: _Asked, named: dict[str, Path], found: Found, teller: Progress) -> None:
    from mint_deploy.bench import throughput

    for label, path in named.items():
        done = throughput(
            path,
            asked.batches,
            asked.threads,
            runtime=asked.runtime,
            label=label,
            restarts=max(asked.restarts, 1),
            budget_s=asked.seconds,
            progress=teller.step,
        )
        found.measured += done.measurements
        for size, reason in done.nulls.items():
            teller.warn(f"{label}, batch {size}: {reason}")


def _page(path: Path, found: Found) -> None:
    import shlex

    from mint_deploy.files import atomic
    from mint_deploy.report import html_of_measurements

    page = html_of_measurements(found.measured, found.compared, command=shlex.join(sys.argv))
    with atomic(path) as part:
        part.write_text(page, encoding="utf-8")


def _end(found: Any) -> None:
    """Leave with the exit code of interface.md."""
    if found.interrupted:
        raise Interrupted(found.interrupted)
    states = {v["state"]: v["text"] for v in found.verdicts}
    if "fail" in states:
        raise PromiseBroken(states["fail"])
    if "inconclusive" in states:
        print(f"warning: inconclusive: {states['inconclusive']}", file=sys.stderr)
