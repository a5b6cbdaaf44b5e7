"""What neighbours do to the ratio of two files, and what cores, blocks and figures do about it.

    python benchmarks/neighbours.py [--rounds 15]    # a quarter of an hour
    python benchmarks/neighbours.py --table          # results/neighbours.md from what is there

A file is measured in turns with itself and with one that has two layers in twenty more. What the restarts differ
by (standard deviation, and the robust one from the median of the deviations) is what widens an interval; the mean
should be the same for all ways. One restart of each way a round, so that an evening's weather meets all alike:

    cores     both processes held to one core (the next but one restart takes another), or free
    block     a turn of 5 or 20 ms
    figure    quartiles: what the harness takes of neighbouring blocks (mint_deploy/_blocks.py)
              pairs: the median over neighbouring blocks of the ratio of their medians
              medians: the median of B over the median of A

with and without a neighbour that computes and rests by turns. Every restart is a line of results/neighbours.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics as st
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from conv_model import LAYERS, onnx_file
from gate import append, machine, neighbour, read

HERE = Path(__file__).resolve().parent
ROUNDS = 15
#: (held to one core, milliseconds of a block)
WAYS = ((False, 20), (True, 20), (True, 5))
FIGURES = ("quartiles", "pairs", "medians")
#: layers of the second file
SECOND = {"itself": LAYERS, "10 % more": LAYERS + LAYERS // 10}


def restart(paths: Sequence[Path], number: int, *, pin: bool, block_ms: float) -> dict[str, float]:
    """Measure one restart of two files; return the logarithms of their ratio."""
    from mint_deploy import _bench_turns, plugins, statistics
    from mint_deploy._bench_base import Settings

    build = plugins.load("runtime", "onnxruntime").build
    before, _bench_turns.BLOCK_S = _bench_turns.BLOCK_S, block_ms / 1000
    try:
        turns = _bench_turns.Turns(
            records={n: _bench_turns.Record(build(p)) for n, p in zip("ab", paths, strict=True)},
            runtime="onnxruntime",
            threads=1,
            batch=1,
            settings=Settings(precision=1e9),
            pin=pin,
        )
        turns.cores_from = number
        turns.restart("ab" if number % 2 else "ba", 30.0)
    finally:
        _bench_turns.BLOCK_S = before
    a, b = turns.records["a"], turns.records["b"]
    return {
        "quartiles": statistics.log_ratios(a.restarts, b.restarts, (a.blocks, b.blocks))[0],
        "pairs": pairs(a.restarts[0], b.restarts[0], a.blocks[0], b.blocks[0]),
        "medians": statistics.log_ratios(a.restarts, b.restarts)[0],
    }


def pairs(
    a: Sequence[int], b: Sequence[int], blocks_a: Sequence[int], blocks_b: Sequence[int]
) -> float:
    """Return the median over neighbouring blocks of the logarithm of their medians' ratio."""
    sides = []
    for ns, lengths in ((a, blocks_a), (b, blocks_b)):
        calls = iter(ns)
        sides.append([st.median([next(calls) for _ in range(n)]) for n in lengths])
    return st.median(math.log(y / x) for x, y in zip(*sides, strict=False))


def spread(logs: Sequence[float]) -> tuple[float, float]:
    """Return the standard deviation and the robust one, in percent."""
    middle = st.median(logs)
    return 100 * st.stdev(logs), 148.26 * st.median(abs(v - middle) for v in logs)


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table."""
    yield "| against | neighbour | cores | block | figure | restarts | mean ratio | deviation | robust |"
    yield f"|{'---|' * 9}"
    keys = [(of, busy, *way) for of in SECOND for busy in (False, True) for way in WAYS]
    for of, busy, pin, block_ms in keys:
        key = (of, busy, pin, block_ms)
        found = [r for r in rows if (r["of"], r["busy"], r["pin"], r["block_ms"]) == key]
        for figure in FIGURES if len(found) > 1 else ():
            logs = [r[figure] for r in found]
            plain, robust = spread(logs)
            yield (
                f"| {of} | {'busy' if busy else 'none of ours'} | {'one' if pin else 'free'} | "
                f"{block_ms} ms | {figure} | {len(found)} | {math.exp(st.mean(logs)):.3f} | "
                f"{plain:.1f} % | {robust:.1f} % |"
            )


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return results/neighbours.md."""
    loads = [r["load_before"] for r in rows]
    where = ", ".join(sorted({r["machine"] for r in rows}))
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known"
    return (
        "# Two files and their neighbours\n\n"
        f"`python benchmarks/neighbours.py`, {where}, load average {load}.\n\n"
        + "\n".join(lines(rows))
        + "\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args(argv)
    path = asked.results / "neighbours.jsonl"
    done = {(r["round"], r["of"], r["busy"], r["pin"], r["block_ms"]) for r in read(path)}
    keys = [
        (number, of, busy, *way)
        for number in range(0 if asked.table else asked.rounds)
        for busy in (False, True)
        for way in WAYS
        for of in SECOND
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = onnx_file(Path(folder) / "m.onnx")
            second = {of: onnx_file(Path(folder) / f"{n}.onnx", n) for of, n in SECOND.items()}
            for number, of, busy, pin, block_ms in [k for k in keys if k not in done]:
                load = Path("/proc/loadavg").read_text().split()[0]
                with neighbour(number, busy=busy):
                    found = restart((model, second[of]), number, pin=pin, block_ms=block_ms)
                about = {"round": number, "of": of, "busy": busy, "pin": pin, "block_ms": block_ms}
                row = {**about, **found, "load_before": float(load), "machine": machine()}
                append(path, {**row, "date": time.strftime("%Y-%m-%d")})
                print(json.dumps({**about, **found}), flush=True)
    finally:
        rows = read(path)
        (asked.results / "neighbours.md").write_text(page(rows), encoding="utf-8")
        print("\n".join(lines(rows)))


if __name__ == "__main__":
    main()
