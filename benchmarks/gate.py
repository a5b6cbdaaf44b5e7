"""Whether CI may believe the gate: a model against itself, and against one that is 10 % slower, many times over.

    python benchmarks/gate.py                         # 4 x 50 comparisons of at most a minute: up to 3.5 hours
    python benchmarks/gate.py --only aa --count 10    # aa, ab, or busy (both again, with a neighbour that works)
    python benchmarks/gate.py --table                 # results/gate.md from what is there

Each comparison is what `mint-deploy bench A --against B` and `mint-deploy compare --max-latency +3%` do:
interleaved blocks in fresh processes, restarts until the interval lies on one side of the limit or the minute is
over. B has 22 equal layers where A has 20; that this is 10 % slower is confirmed by a long run (`truth`). The
neighbour of `busy` computes and rests by turns of random length. Every comparison is a line of results/gate.jsonl
and is not made again; a line counts only under equal settings. Promised, at 50 each:

    aa       at most 1 fail, at least 40 pass            busy aa    at most 1 fail
    ab       at least 45 fail, no pass                   busy ab    at most 1 pass
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conv_model import LAYERS, onnx_file

HERE = Path(__file__).resolve().parent
SEED, COUNT, LIMIT, SECONDS, TRUTH_SECONDS = 0, 50, 0.03, 60.0, 300.0
MORE = LAYERS // 10
#: kind -> whether B is the slower model, and whether a neighbour works
KINDS = {
    "aa": (False, False),
    "ab": (True, False),
    "busy aa": (False, True),
    "busy ab": (True, True),
}
STATES = ("pass", "inconclusive", "fail")
#: kind -> state -> least and most of 50
PROMISES: dict[str, dict[str, tuple[int, int]]] = {
    "aa": {"fail": (0, 1), "pass": (40, 50)},
    "ab": {"pass": (0, 0), "fail": (45, 50)},
    "busy aa": {"fail": (0, 1)},
    "busy ab": {"pass": (0, 1)},
}


# ---------------------------------------------------------------- one comparison


def compare_once(a: Path, b: Path, *, limit: float, seconds: float, seed: int) -> dict[str, Any]:
    """Measure two files against each other and judge them as CI would."""
    from mint_deploy.bench import interleave
    from mint_deploy.compare import compare

    begin = time.monotonic()
    measured, compared = interleave(
        {"a": a, "b": b}, limit=limit, budget_s=seconds - 1.0, seed=seed
    )
    verdict = compare(measured[0], measured[1], {"latency": f"{100 * limit:+g}%"})
    (check,) = verdict.checks
    return {
        "state": verdict.state,
        "ratio": compared[0].ratio,
        "low": compared[0].low,
        "high": compared[0].high,
        "restarts": compared[0].restarts,
        "median_ms": [statistics.median(ns for r in m.restarts_ns for ns in r) / 1e6 for m in measured],
        "reason": check.reason,
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def truth(a: Path, b: Path, *, seconds: float, seed: int) -> dict[str, Any]:
    """Measure how much slower B really is: a long run that stops at nothing but its time."""
    from mint_deploy.bench import interleave

    _, compared = interleave({"a": a, "b": b}, half_width=1e-6, budget_s=seconds, seed=seed)
    c = compared[0]
    return {"ratio": c.ratio, "low": c.low, "high": c.high, "restarts": c.restarts}


NEIGHBOUR = """
import random, sys, threading, time
import numpy as np
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
dice, a = random.Random(int(sys.argv[1])), np.ones((700, 700), np.float32)
while True:
    end = time.monotonic() + dice.uniform(0.2, 3.0)
    while time.monotonic() < end:
        a @ a
    time.sleep(dice.uniform(0.2, 3.0))
"""


@contextlib.contextmanager
def neighbour(seed: int, *, busy: bool = True) -> Iterator[None]:
    """A process that computes on one core and rests by turns; it ends with this one."""
    if not busy:
        yield
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR, str(seed)], stdin=subprocess.PIPE, env=environment
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- what was done, and what is left

Row = Mapping[str, Any]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines that are whole; a killed run may have left half a one."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def append(path: Path, row: Row) -> None:
    """Write one line, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    start = "" if not text or text.endswith("\n") else "\n"
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{start}{json.dumps(row)}\n")


def of(rows: Sequence[Row], settings: Row, kind: str) -> list[Row]:
    """Return the comparisons of a kind that were made under ``settings``, each number once."""
    found = {r["index"]: r for r in rows if r["kind"] == kind and r["settings"] == settings}
    return [found[i] for i in sorted(found)]


def pending(rows: Sequence[Row], settings: Row, kind: str, count: int) -> list[int]:
    """Return the numbers of the comparisons that are still to be made."""
    done = {r["index"] for r in of(rows, settings, kind)}
    return [i for i in range(count) if i not in done]


def broken(kind: str, rows: Sequence[Row], *, whole: int = COUNT) -> list[str]:
    """Return the promises that ``rows`` break; fewer than ``whole`` are held to what is broken already.

    A least is reached if all that are missing could still reach it.
    """
    out, missing = [], max(whole - len(rows), 0)
    for state, (least, most) in PROMISES[kind].items():
        n = sum(r["state"] == state for r in rows)
        if n > most:
            out.append(f"{n} {state}, at most {most} promised")
        if n + missing < least:
            out.append(f"{n} {state}, at least {least} promised")
    return out


def table(rows: Sequence[Row], settings: Row) -> str:
    """Return what was found as Markdown."""
    heads = ["comparison", "made", *STATES, "ratio, median", "restarts, median", "seconds, median"]
    heads += ["seconds, most", "promise"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for kind in KINDS:
        found = of(rows, settings, kind)
        if not found:
            lines.append(f"| {kind} | 0 | - | - | - | - | - | - | - | not run here |")
            continue
        counts = [str(sum(r["state"] == s for r in found)) for s in STATES]
        middle = [statistics.median(r[k] for r in found) for k in ("ratio", "restarts", "seconds")]
        wrong = broken(kind, found)
        kept = "; ".join(wrong) if wrong else "kept" if len(found) >= COUNT else "kept so far"
        lines.append(
            f"| {kind} | {len(found)} | {' | '.join(counts)} | {middle[0]:.3f} | {middle[1]:g} | "
            f"{middle[2]:.0f} | {max(r['seconds'] for r in found):.0f} | {kept} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[Row], settings: Row) -> str:
    """Return results/gate.md."""
    long = next(
        (r for r in reversed(rows) if r["kind"] == "truth" and r["of"] == settings["models"]), None
    )
    said = "not run here"
    if long:
        said = f"{long['ratio']:.4f} [{long['low']:.4f}, {long['high']:.4f}], {long['restarts']} restarts"
    made = [r for r in rows if r.get("settings") == settings]
    machines = sorted({r["machine"] for r in made})
    dates = sorted({r["date"] for r in made})
    loads = [r["load_before"] for r in made]
    load = (
        f" Load average before a comparison: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    )
    how = f"limit {100 * settings['limit']:+g} %, at most {settings['seconds']:g} s each"
    where = f"{', '.join(machines) or 'no machine yet'}, {' to '.join(dict.fromkeys([*dates[:1], *dates[-1:]]))}"
    return (
        "# The gate on a noisy machine\n\n"
        f"`python benchmarks/gate.py`: {how}, seed {settings['seed']}; {where}.{load}\n"
        f"Time of B over A where B is the slower model, by a long run: {said}.\n\n"
        f"{table(rows, settings)}\n"
    )


# ---------------------------------------------------------------- the run


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def run(given: argparse.Namespace, path: Path, settings: Row, files: Mapping[str, Path]) -> None:
    """Make what is missing, one line each."""
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    known = [r for r in read(path) if r["kind"] == "truth" and r["of"] == settings["models"]]
    if not known and given.truth_seconds > 0:
        found = truth(files["a"], files["slow"], seconds=given.truth_seconds, seed=SEED)
        append(path, {"kind": "truth", "of": settings["models"], **about, **found})
        print("truth", found, flush=True)
    only = {"aa": ["aa"], "ab": ["ab"], "busy": ["busy aa", "busy ab"], None: list(KINDS)}[
        given.only
    ]
    todo = [(i, kind) for kind in only for i in pending(read(path), settings, kind, given.count)]
    # number by number, so that an evening's weather meets all kinds alike
    for i, kind in sorted(todo):
        slower, busy = KINDS[kind]
        load = os.getloadavg()[0]
        with neighbour(SEED + i, busy=busy):
            found = compare_once(
                files["a"],
                files["slow" if slower else "again"],
                limit=given.limit,
                seconds=given.seconds,
                seed=SEED + i,
            )
        row = {
            "kind": kind,
            "index": i,
            "settings": settings,
            "load_before": round(load, 2),
            **about,
        }
        append(path, {**row, **found})
        print(f"{kind} {i}: {found['state']} {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}], "
              f"{found['restarts']} restarts, {found['seconds']} s", flush=True)  # fmt: skip


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", choices=["aa", "ab", "busy"])
    parser.add_argument("--count", type=int, default=COUNT, help="comparisons of each kind")
    parser.add_argument("--limit", type=float, default=LIMIT)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most for a comparison")
    parser.add_argument("--truth-seconds", type=float, default=TRUTH_SECONDS, help="0: no long run")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def main() -> None:
    given = options()
    path = given.results / "gate.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "a": onnx_file(Path(folder) / "a.onnx"),
            "again": onnx_file(Path(folder) / "again.onnx"),
            "slow": onnx_file(Path(folder) / "slow.onnx", LAYERS + MORE),
        }
        digest = hashlib.sha256(files["a"].read_bytes() + files["slow"].read_bytes()).hexdigest()
        settings = {
            "limit": given.limit,
            "seconds": given.seconds,
            "seed": SEED,
            "models": digest[:12],
        }
        try:
            if not given.table:
                run(given, path, settings, files)
        finally:  # what was made until an interrupt counts too
            rows = read(path)
            given.results.mkdir(parents=True, exist_ok=True)
            (given.results / "gate.md").write_text(page(rows, settings), encoding="utf-8")
    print(table(rows, settings))
    if any(broken(kind, of(rows, settings, kind)) for kind in KINDS):
        sys.exit(1)


if __name__ == "__main__":
    main()
