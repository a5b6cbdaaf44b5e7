"""How long trace, plan, cut and the whole gate take, at the image sizes that the networks are made for.

    python benchmarks/surgery_speed.py [--nets resnet50,vit_b_16] [--out benchmarks/results]

The networks are torchvision's with random weights (see CONTRIBUTING for the environment) and a YOLO-size
one of the tests' pieces. Each runs in a process of its own with all cores, one sample; wall-clock seconds
are the median of three, CPU seconds beside them, because other work on the machine slows the clock alone.
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
NETS = {
    "resnet50": 224,
    "densenet201": 224,
    "vit_b_16": 224,
    "mobilenet_v2": 224,
    "efficientnet_v2_s": 224,
    "swin_t": 224,
    "yolo": 640,
}
SEED = 0
TURNS = 3


def one(name: str, size: int) -> dict[str, Any]:
    """Time one network in this process."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
    import torch
    from conformance.builders import torchvision_model
    from conformance.catalogue import enliven
    from masking import random_keep

    from mint_deploy.plan import make_plan
    from mint_deploy.surgery import cut
    from mint_deploy.trace import trace
    from mint_deploy.verify import prove

    torch.manual_seed(SEED)
    if name == "yolo":
        from yolo_net import Yolo

        model: torch.nn.Module = Yolo().eval()
    else:
        model = torchvision_model(name).eval()
    enliven(model)
    x = torch.randn(1, 3, size, size)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, cpus = [], []
    for _ in range(TURNS):
        wall, cpu = time.perf_counter(), time.process_time()
        graph = trace(model, x)
        plan = make_plan(graph, random_keep(graph, SEED, least=0.4))
        cut(model, plan)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall = time.perf_counter()
    _, _, proof = prove(model, plan, x)
    return {
        "net": name,
        "size": size,
        "params": sum(p.numel() for p in model.parameters()),
        "groups": len(graph.groups),
        "cuttable_macs_share": round(graph.cuttable_macs_share, 4),
        "trace_plan_cut_s": round(statistics.median(walls), 2),
        "trace_plan_cut_cpu_s": round(statistics.median(cpus), 2),
        "added_peak_rss_bytes": (peak - base) * 1024,
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gate_s": round(time.perf_counter() - wall, 1),
        "max_error": proof.max_error,
        "least_power": proof.least_power,
        "rolled_back": sum(g.status == "rolled back" for g in proof.groups.values()),
    }


def main() -> None:
    """Run every network and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, NETS[given.one])))
        return
    rows = []
    for name in given.nets.split(","):
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    body = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "seed": SEED,
        "rows": rows,
    }
    (given.out / "surgery_speed.json").write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
