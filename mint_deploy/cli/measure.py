"""The command that measures: ``bench``, of a run folder or of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_deploy.cli import options as o
from mint_deploy.cli import show
from mint_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mint_deploy.artifacts import Comparison, Measurement
    from mint_deploy.progress import Progress

__all__ = ["bench"]

Files = Annotated[
    list[Path],
    typer.Argument(
        help="One run folder, or ONNX files (with several, each against the first).",
        metavar="RUN|FILE ...",
        show_default=False,
    ),
]


def bench(
    files: Files,
    against: Annotated[
        Path | None, typer.Option(help="Measure this file in turns with the first.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="A runtime that runs files.")] = "onnxruntime",
    scenario: Annotated[
        str, typer.Option(help="single_stream (latency) or offline (throughput).")
    ] = "single_stream",
    batch: Annotated[str, typer.Option(help="Samples a call; offline: several.")] = "1",
    threads: Annotated[int, typer.Option(help="Compute threads of a session.")] = 1,
    restarts: Annotated[int, typer.Option(help="Process restarts.")] = 5,
    seconds: Annotated[float, typer.Option(help="Time for everything.")] = 60.0,
    save_baseline: Annotated[
        Path | None, typer.Option(help="Write the measurements here, for `compare`.")
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure a run's networks, or ONNX files, in fresh processes that take turns."""
    from mint_deploy import pipeline, progress

    teller = progress.for_terminal(quiet=quiet)
    if any(path.is_dir() for path in files):
        if len(files) > 1 or against is not None:
            raise ConfigError("bench measures one run folder, or files; not a folder with others")
        done = pipeline.advance(files[0], "bench", progress=teller)
        if save_baseline is not None:
            _keep(save_baseline, (files[0] / "measurements.jsonl").read_text(encoding="utf-8"))
        show.result(done, as_json=json, stage="bench")
        return
    batches = _batches(batch)
    with teller.stage("bench", f"measure {' and '.join(str(f) for f in files)}"):
        if scenario == "offline":
            measured, compared = _offline(
                files, against, runtime, batches, threads, seconds, teller
            )
        else:
            measured, compared = _in_turns(
                files, against, runtime, scenario, batches, threads, restarts, seconds, teller
            )
    if save_baseline is not None:
        _save(save_baseline, measured)
    _show(measured, compared, as_json=json)


def _batches(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise ConfigError(f"--batch is '{text}', expected whole numbers such as 1,8") from None


def _in_turns(
    files: list[Path],
    against: Path | None,
    runtime: str,
    scenario: str,
    batches: list[int],
    threads: int,
    restarts: int,
    seconds: float,
    teller: Progress,
) -> tuple[list[Measurement], list[Comparison]]:
    from mint_deploy.bench import SCENARIOS, interleave
    from mint_deploy.errors import UnknownName

    if scenario not in SCENARIOS:
        raise UnknownName("scenario", scenario, SCENARIOS)
    paths = [*files, *([against] if against is not None else [])]
    labels = _labels(paths)
    measured: list[Measurement] = []
    compared: list[Comparison] = []
    for size in batches:
        found = interleave(
            dict(zip(labels, paths, strict=True)),
            runtime=runtime,
            threads=threads,
            batch=size,
            restarts=restarts,
            budget_s=seconds / len(batches),
            progress=teller.step,
        )
        measured += found[0]
        compared += found[1]
    return measured, compared


def _offline(
    files: list[Path],
    against: Path | None,
    runtime: str,
    batches: list[int],
    threads: int,
    seconds: float,
    teller: Progress,
) -> tuple[list[Measurement], list[Comparison]]:
    from mint_deploy.bench import throughput

    paths = [*files, *([against] if against is not None else [])]
    measured: list[Measurement] = []
    for label, path in zip(_labels(paths), paths, strict=True):
        found = throughput(
            path,
            batches,
            threads,
            runtime=runtime,
            label=label,
            budget_s=seconds / len(paths),
            progress=teller.step,
        )
        measured += found.measurements
        for size, reason in found.nulls.items():
            teller.warn(f"{label}, batch {size}: {reason}")
    return measured, []


def _labels(paths: list[Path]) -> list[str]:
    """File names where they differ, whole paths where they do not."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{paths[0]} is named twice; expected files that differ")
    return [str(path) for path in paths]


def _keep(path: Path, text: str) -> None:
    from mint_deploy.files import atomic

    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _save(path: Path, measured: list[Measurement]) -> None:
    import tempfile

    from mint_deploy.bench import save

    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        save(folder, measured)
        _keep(path, (Path(folder) / "measurements.jsonl").read_text(encoding="utf-8"))


def _show(measured: list[Measurement], compared: list[Comparison], *, as_json: bool) -> None:
    if as_json:
        show.print_json({"measurements": measured, "comparisons": compared})
        return
    from mint_deploy.report import words
    from mint_deploy.statistics import percentile

    rows = [["", "batch", "median", "p90", "per second", "peak memory"]]
    for m in measured:
        samples = [ns for restart in m.restarts_ns for ns in restart]
        median, high = percentile(samples, 50), percentile(samples, 90)
        rate = m.task.batch * len(samples) / sum(samples) * 1e9 if samples else None
        rows.append(
            [
                m.task.label,
                str(m.task.batch),
                words.duration(median.value),
                words.duration(high.value) if high.value is not None else words.NOT_HERE,
                words.short(rate),
                words.bytes_(m.peak_rss_bytes),
            ]
        )
    print(show.table(rows))
    for c in compared:
        span = words.span(c.low, c.high)
        print(
            f"  {c.b} takes {words.fixed(c.ratio, 3)} of the time of {c.a} ({span}, "
            f"{100 * c.confidence:.0f} % interval, {c.restarts} restarts)"
        )
    for text in dict.fromkeys(d for found in (*measured, *compared) for d in _doubts(found)):
        print(f"  doubt: {text}")


def _doubts(found: Any) -> tuple[str, ...]:
    doubts: tuple[str, ...] = found.doubts
    return doubts
