"""What scoring with the ``gaussian`` estimator costs: beside the forward passes it needs, and for a large network.

    python benchmarks/gaussian_speed.py [--data ../shared/data] [--nets resnet56,resnet50]

``resnet56``: 1,000 CIFAR-10 images. Five turns, each a plain forward pass over the images and then sample and
score (spread included); *added* is what the latter takes longer, and the ratio is judged turn by turn.
``resnet50``: 1,000 images of 224 x 224 (CIFAR's, enlarged) on random weights, once: seconds, and the peak memory
of the whole process. Each in a process of its own, with all cores.
"""

from __future__ import annotations

import argparse
import itertools
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
IMAGES, TURNS, SEED = 1000, 5, 0


def resnet56(data: Path) -> dict[str, Any]:
    """Time ResNet-56 on real images."""
    import torch

    import mint_deploy as md
    from mint_deploy.data import load_data
    from mint_deploy.models import load_model

    weights = data / "weights" / "resnet56-cifar10-jpeg.safetensors"
    model = load_model("resnet56-cifar10", weights).model.eval()
    splits = load_data(f"cifar10:{data / 'cifar10'}")
    graph = md.trace(model, torch.zeros(1, 3, 32, 32))
    part = splits.train.balanced(IMAGES, SEED)
    turns = []
    for turn in range(TURNS + 1):
        clock = [time.perf_counter()]
        with torch.no_grad():
            for x, _ in part.batches(100):
                model(x)
        clock.append(time.perf_counter())
        moments = md.sample(model, graph, part, images=IMAGES, seed=SEED)
        clock.append(time.perf_counter())
        md.score(graph, moments)
        clock.append(time.perf_counter())
        if turn:  # the first one reads files and warms up
            turns.append([b - a for a, b in itertools.pairwise(clock)])
    forward, sample, score = (statistics.median(t[i] for t in turns) for i in range(3))
    return {
        "net": "resnet56-cifar10",
        "images": IMAGES,
        "forward_s": round(forward, 2),
        "sample_s": round(sample, 2),
        "score_s": round(score, 2),
        "added_over_forward": round(statistics.median((s + c - f) / f for f, s, c in turns), 2),
    }


def resnet50(data: Path) -> dict[str, Any]:
    """Time ResNet-50 at the size of ImageNet."""
    import torch
    import torch.nn.functional as F

    import mint_deploy as md
    from mint_deploy.data import load_data
    from mint_deploy.models import load_model

    class Large(torch.utils.data.Dataset[Any]):
        """CIFAR's images, enlarged one by one."""

        def __init__(self, part: Any) -> None:
            self.part = part

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, i: int) -> torch.Tensor:
            x, _ = next(self.part.subset([i]).batches(1))
            return F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)[0]

    torch.manual_seed(SEED)
    model = load_model("resnet50").model.eval()
    part = load_data(f"cifar10:{data / 'cifar10'}").train.balanced(IMAGES, SEED)
    clock = [time.perf_counter()]
    graph = md.trace(model, torch.zeros(1, 3, 224, 224))
    clock.append(time.perf_counter())
    moments = md.sample(model, graph, Large(part), images=IMAGES, seed=SEED)
    clock.append(time.perf_counter())
    md.score(graph, moments)
    clock.append(time.perf_counter())
    trace, sample, score = (b - a for a, b in itertools.pairwise(clock))
    return {
        "net": "resnet50",
        "images": IMAGES,
        "trace_s": round(trace, 1),
        "sample_s": round(sample, 1),
        "score_s": round(score, 1),
        "all_s": round(clock[-1] - clock[0], 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


NETS = {"resnet56": resnet56, "resnet50": resnet50}


def main() -> None:
    """Run every network and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(NETS[given.one](given.data)))
        return
    path = HERE / "results" / "gaussian_speed.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in given.nets.split(","):
        command = [sys.executable, __file__, "--one", name, "--data", str(given.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        row = json.loads(done.stdout.strip().splitlines()[-1])
        row |= {"load_average_before": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
        known = [*(k for k in known if k["net"] != row["net"]), row]
        print(row, flush=True)
    body = {
        "command": "python benchmarks/gaussian_speed.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "seed": SEED,
        "rows": known,
    }
    path.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
