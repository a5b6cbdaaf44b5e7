"""Measurements for the tests of the report with all that schema 2 holds: figures, layers, looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import report_runs as runs
from report_nets import resnet_layers

from mint_deploy import files
from mint_deploy.artifacts import Comparison, LayerTime, MachineState, Measurement

BATCHES = (1, 2, 4, 8, 16, 32)
#: milliseconds of a call at batch 1, and samples a second that no batch exceeds
MODELS = {"dense": (3.412, 420.0), "slim": (1.973, 760.0)}


def layer_times(label: str) -> tuple[LayerTime, ...]:
    """A profile: each of our layers is a node or two, and some nodes are nobody's."""
    side = "after" if label == "slim" else "before"
    rng = np.random.default_rng(len(label))
    nodes = []
    for layer in resnet_layers():
        ns = 9_000 + layer[f"macs_{side}"] / 90 * float(rng.uniform(0.9, 1.1))
        nodes.append(
            LayerTime(
                name=f"/{layer['name'].replace('.', '/')}/Conv", op="Conv", ns=ns, calls=200,
                layer=f"{layer['name']}.weight", width=layer[side],
            )
        )  # fmt: skip
    nodes.append(
        LayerTime(
            name="/conv1/Relu", op="Relu", ns=4_000.0, calls=200, layer="conv1.weight", width=None
        )
    )
    nodes += [LayerTime(name=f"/Add_{i}", op="Add", ns=3_100.0, calls=200) for i in range(3)]
    return tuple(nodes)


def states(restarts: int = 5) -> tuple[MachineState, ...]:
    return tuple(
        MachineState(
            load_average=1.2 + 0.1 * i,
            steal=0.004 * i,
            other_cpu=0.06,
            frequency_mhz=2700.0 - 25 * i,
        )
        for i in range(restarts)
    )


def figures(label: str) -> dict[str, float]:
    small = label == "slim"
    return {
        "file_bytes": 1_781_330 if small else 3_446_102,
        "params": 437_466 if small else 853_018,
        "macs": 61_900_000 if small else 125_500_000,
        "weight_bytes": 1_749_864 if small else 3_412_072,
        "peak_activation_bytes": 196_608 if small else 262_144,
    }


def single(label: str, *, calls: int = 180, restarts: int = 5) -> Measurement:
    """A single-stream measurement with everything; energy only where a label has a sensor's luck."""
    found = runs.timed(label, MODELS[label][0], calls=calls)
    return replace(
        found,
        restarts_ns=(found.restarts_ns * restarts)[:restarts],
        figures=figures(label),
        layers=layer_times(label),
        states=states(restarts),
        nulls={
            **found.nulls,
            "gpu_bytes": "no NVIDIA driver on this machine",
        },
    )


def swept(label: str, batches: tuple[int, ...] = BATCHES) -> list[Measurement]:
    """Offline measurements whose throughput saturates: its knee is at batch 8."""
    one, most = MODELS[label]
    out = []
    for batch in batches:
        fixed = one - 1e3 / most
        out.append(
            replace(
                runs.timed(
                    label, fixed + batch * 1e3 / most, batch=batch, scenario="offline", calls=20
                ),
                partner=None,
                doubts=(f"latency drifts by +{5 + batch % 7}% from the first to the last third",),
            )
        )
    return out


def comparison(a: str = "dense", b: str = "slim") -> Comparison:
    return Comparison(a=a, b=b, ratio=0.5783, low=0.5651, high=0.5918, confidence=0.95, restarts=5)


def everything() -> list[Measurement]:
    """Both models, single stream and swept, as the stage ``bench`` writes them."""
    return [*(single(label) for label in MODELS), *(m for label in MODELS for m in swept(label))]


def full(run: Path) -> Path:
    """Write the folder of a finished run whose measurements hold all that there is."""
    runs.whole(run)
    (run / "measurements.jsonl").unlink()
    runs.append(run, everything())
    files.write_json(run / "comparison.json", {"comparisons": [comparison()]}, kind="Comparisons")
    return run
