"""How long MINT's estimator takes on conv9 of VGG16 (512 x 512), beside the published seconds.

    python benchmarks/gmi_speed.py [--groups 64 128 256 512] [--turns 3] [--device cpu] [--out benchmarks/results]

Rows and channels are those of the published tables (2,000 samples, 512 inputs, 512 outputs); the values are
synthetic (correlated, rectified). Each size runs in a process of its own, so that its added peak memory can be
read; compilation is not timed (numba keeps its machine code). Beside the seconds stands the arithmetic limit: a
loop that adds and compares as often as the trees have pairs of vertices, on as many threads, in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEED, ROWS, CHANNELS = 0, 2000, 512
#: seconds of the published MINT code and of SNACS's estimator (arXiv 2006.12463, its own table)
PUBLISHED = {64: (14518, 840), 128: (74126, 2439), 256: (271881, 9999)}


def activations() -> tuple[Any, Any]:
    """Return outputs and inputs ``[2000, 512]`` of a layer that has never been."""
    import numpy as np

    random = np.random.default_rng(SEED)
    causes = random.normal(size=(ROWS, 60))
    mixed = causes @ random.normal(size=(60, CHANNELS)) / 60**0.5
    inputs = np.maximum(mixed + 0.5 * random.normal(size=mixed.shape), 0)
    outputs = inputs @ random.normal(size=(CHANNELS, CHANNELS)) / CHANNELS**0.5
    return outputs.astype(np.float32), inputs.astype(np.float32)


def limit(evaluations: float) -> float:
    """Return the seconds of so many additions and comparisons of float32 on all of numba's threads."""
    import numba
    import numpy as np

    @numba.njit(nogil=True)
    def sweep(new: Any, old: Any, row: Any, shift: Any) -> None:
        for j in range(len(new)):
            value = row[j] + shift
            new[j] = value if value < old[j] else old[j]  # noqa: FURB136  # min() makes no vectors

    @numba.njit(parallel=True, nogil=True)
    def loop(best: Any, row: Any, times: int) -> None:
        for t in numba.prange(len(best)):
            for i in range(times):
                sweep(best[t, i % 2], best[t, 1 - i % 2], row, np.float32(i & 7))

    threads, times, seconds = numba.get_num_threads(), 300_000, []
    best, row = np.ones((threads, 2, 1344), dtype=np.float32), np.ones(1344, dtype=np.float32)
    loop(best, row, 1)
    for _ in range(5):
        begun = time.perf_counter()
        loop(best, row, times)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * evaluations / (times * threads * 1344)


def one(groups: int, turns: int, device: str) -> dict[str, Any]:
    """Time one size in this process."""
    import numba

    import mint_deploy as md

    outputs, inputs = activations()
    md.dependency(
        outputs[:60], inputs[:60], out_groups=groups, in_groups=2, device=device
    )  # compiles
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, cpus = [], []
    for _ in range(turns if groups <= 256 else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        md.dependency(
            outputs, inputs, out_groups=groups, in_groups=groups, seed=SEED, device=device
        )
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vertices = ROWS // 3 * 2
    least = limit(groups**2 * vertices * (vertices - 1) / 2)
    seconds = statistics.median(walls)
    published = PUBLISHED.get(groups)
    return {
        "groups": groups,
        "device": device,
        "threads": numba.get_num_threads(),
        "trees": groups**2,
        "vertices": vertices,
        "seconds": round(seconds, 2),
        "seconds_of_each": [round(s, 2) for s in walls],
        "cpu_seconds": round(statistics.median(cpus), 2),
        "published_mint_seconds": published and published[0],
        "published_snacs_seconds": published and published[1],
        "factor": published and round(published[0] / seconds),
        "limit_seconds": round(least, 2),
        "times_the_limit": round(seconds / least, 1),
        "added_peak_rss_bytes": (peak - base) * 1024,
    }


def table(body: dict[str, Any]) -> str:
    """Return the Markdown of the results."""
    head = ("groups", "device", "seconds", "CPU seconds", "MINT published", "SNACS published")
    head += ("factor to MINT", "limit, seconds", "times the limit", "added memory")
    lines = [
        "# MINT's estimator on conv9 of VGG16",
        "",
        f"`python benchmarks/gmi_speed.py` on {body['machine']}, {body['date']}, seed {body['seed']}. The load",
        f"average was {body['load_average']} before it (other work took its share of the cores). 2,000 rows, 512",
        "inputs, 512 outputs, all other inputs as the condition; median of three (512 x 512: one run). Published:",
        "MINT's code and SNACS's estimator, from SNACS's table (arXiv 2006.12463), on other machines. Limit: one",
        "addition and one comparison for each pair of vertices of each tree, measured here.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for r in body["rows"]:
        cells = [f"{r['groups']} x {r['groups']}", r["device"], r["seconds"], r["cpu_seconds"]]
        cells += [r[k] for k in ("published_mint_seconds", "published_snacs_seconds", "factor")]
        cells += [r["limit_seconds"], r["times_the_limit"]]
        cells.append(f"{r['added_peak_rss_bytes'] / 2**20:.0f} MiB")
        shown = ("-" if c is None else f"{c:,}" if isinstance(c, int) else str(c) for c in cells)
        lines.append(f"| {' | '.join(shown)} |")
    if body["cuda"]:
        lines.append(f"\nCUDA: {body['cuda']}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every size and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--device", default="cpu", help="cpu, and cuda beside it where there is one"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.turns, given.device)))
        return
    import torch

    cuda = torch.cuda.is_available()
    body: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "seed": SEED,
        "load_average": round(os.getloadavg()[0], 1),
        "cuda": torch.cuda.get_device_name() if cuda else "not run here, no device",
        "rows": [],
    }
    devices = [given.device, *(["cuda"] if cuda and given.device == "cpu" else [])]
    for device in devices:
        for groups in given.groups:
            command = [sys.executable, str(Path(__file__).resolve()), "--one", str(groups)]
            command += ["--turns", str(given.turns), "--device", device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{groups}: {done.stderr.strip().splitlines()[-1]}")
            body["rows"].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(body["rows"][-1], flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gmi_speed.json").write_text(json.dumps(body, indent=1) + "\n")
    (given.out / "gmi_speed.md").write_text(table(body))
    print(table(body))


if __name__ == "__main__":
    main()
