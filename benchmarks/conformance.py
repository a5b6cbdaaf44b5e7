"""The engine on real architectures: exact, or frozen with the reason; torch-pruning on the same networks.

    python benchmarks/conformance.py                       # everything that is not done yet, then the table
    python benchmarks/conformance.py --only 'timm/*net*'   # what matches; --again repeats what is done
    python benchmarks/conformance.py --table               # write the table from what is there

Each architecture runs in a process of its own with a limit of time and memory. A finished one is a line of
``build/conformance/rows.jsonl`` (``--out``), so a stopped run goes on where it was; rows of another state of
the engine are run anew. ``--table`` and complete runs write ``benchmarks/results/conformance.{json,md}``.
Every claim *exact* is crossed by a reference that shares nothing with the engine (``conformance/absent.py``).
The optional packages and how to install them stand in CONTRIBUTING.md; what is absent is left out and named.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import multiprocessing as mp
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
RESULTS = HERE / "results"
LIMIT = 180.0
#: on a busy machine it may take so many times as long by the clock
PATIENCE = 5.0
#: the files whose state decides what a row says
ENGINE = (
    *(
        "artifacts",
        "attention",
        "culprits",
        "gate",
        "graph",
        "inputs",
        "plan",
        "reference",
        "settle",
    ),
    *("surgery", "trace", "verify", "tracing/**/*"),
)
OPTIONAL = ("torchvision", "timm", "transformers", "torch_pruning")


def engine_digest() -> str:
    """Return a hash of the engine's sources."""
    root = HERE.parent / "mint_deploy"
    files = sorted({p for pattern in ENGINE for p in root.glob(f"{pattern}.py")})
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:12]


def one(name: str, side: str, path: str, memory: int, limit: int) -> None:
    """Run one architecture in this process and leave the row at ``path``.

    ``memory`` is in bytes; ``limit`` in seconds of processor time, so that a busy machine does not decide.
    """
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    import torch

    torch.set_num_threads(1)
    from conformance import catalogue, ours, peer

    try:
        row = (ours if side == "ours" else peer).examine(catalogue.cases()[name])
    except MemoryError:
        row = out_of_memory(memory)
    except Exception as error:  # noqa: BLE001  # the row says what happened
        lines = traceback.format_exception(error)
        text = f"{type(error).__name__}: {error}"[:500]
        row = {"verdict": "crash", "error": text, "traceback": "".join(lines)[-2000:]}
    if "can't allocate memory" in row.get("error", ""):
        row |= out_of_memory(memory)
    Path(path).write_text(json.dumps(row))


def out_of_memory(memory: int) -> dict[str, str]:
    """Return the verdict of what needs more than is allowed."""
    return {"verdict": "memory limit", "error": f"needs more than {memory / 2**30:g} GiB"}


def run(todo: list[tuple[str, str]], folder: Path, *, jobs: int, limit: float, memory: int) -> None:
    """Run what is to do, ``jobs`` at a time, and append a row for each."""
    # the server that is forked from starts with the environment's path, not with this process's
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["conformance.preload"])
    digest = engine_digest()
    live: dict[Any, tuple[str, str, Path, float]] = {}
    left = list(todo)
    with tempfile.TemporaryDirectory() as scratch:
        while left or live:
            while left and len(live) < jobs:
                name, side = left.pop(0)
                path = Path(scratch) / f"{len(left)}.json"
                process = context.Process(
                    target=one, args=(name, side, str(path), memory, round(limit))
                )
                process.start()
                live[process] = (name, side, path, time.monotonic())
            for process in list(live):
                name, side, path, start = live[process]
                process.join(0.05)
                late = time.monotonic() - start > PATIENCE * limit
                if process.is_alive() and not late:
                    continue
                if process.is_alive():
                    process.kill()
                    process.join()
                del live[process]
                if path.exists():
                    row = json.loads(path.read_text())
                elif late or process.exitcode == -signal.SIGXCPU:
                    row = {"verdict": "time limit", "error": f"not done in {limit:g} s"}
                else:
                    row = {"verdict": "crash", "error": f"process ended with {process.exitcode}"}
                row = {"name": name, "side": side, "engine": digest, **row}
                with (folder / "rows.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                seconds = f"{time.monotonic() - start:.0f} s"
                print(
                    f"{side} {name}: {row['verdict']} {row.get('error', '')[:120]} ({seconds})",
                    flush=True,
                )


def read_rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest row of each architecture and side."""
    path = folder / "rows.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["name"], row["side"]): row for row in rows}


def available(names: Iterable[str]) -> list[str]:
    """Return the architectures whose package is installed; name what is left out."""
    missing = [p for p in OPTIONAL if importlib.util.find_spec(p) is None]
    for package in missing:
        print(f"{package} is not installed (see CONTRIBUTING.md): left out", flush=True)
    return [n for n in names if n.partition("/")[0] not in missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=["*"], nargs="+", help="names to run, with wildcards")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "conformance")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="processor seconds for one architecture"
    )
    parser.add_argument("--memory", type=float, default=9.0, help="GiB for one architecture")
    parser.add_argument("--no-peer", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--again", action="store_true", help="repeat what is done")
    parser.add_argument("--table", action="store_true", help="only write the table")
    given = parser.parse_args()
    from conformance import catalogue, table

    given.out.mkdir(parents=True, exist_ok=True)
    names = list(catalogue.cases())
    if not given.table:
        rows, digest = read_rows(given.out), engine_digest()
        chosen = available(n for n in names if any(fnmatch(n, p) for p in given.only))
        done = {key for key, r in rows.items() if key[1] == "peer" or r["engine"] == digest}
        without_peer = given.no_peer or importlib.util.find_spec("torch_pruning") is None
        sides = ("ours",) if without_peer else ("ours", "peer")
        todo = [(n, s) for s in sides for n in chosen if given.again or (n, s) not in done]
        memory = int(given.memory * 2**30)
        run(todo, given.out, jobs=given.jobs, limit=given.limit, memory=memory)
    if given.table or given.only == ["*"]:
        rows = read_rows(given.out)
        table.write(
            RESULTS, [r for n in names for s in ("ours", "peer") if (r := rows.get((n, s)))]
        )


if __name__ == "__main__":
    main()
