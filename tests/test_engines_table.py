"""The table of benchmarks/engines.py, and cells that are not made twice."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import engines
import pytest
from engines_table import table

from mint_deploy.quantize import METHODS, SCHEMES

INT8 = {"bytes": 973_000, "source_bytes": 3_430_000, "float_layers": [1, 2], "layers": 83}
CELLS: dict[str, Any] = {
    "network/resnet56": {"how": "trained"},
    "int8/resnet56/dense": INT8,
    "accuracy/resnet56/onnxruntime/dense": {
        "fp32": {"top1": 0.876},
        "int8": {"top1": 0.8735, "drop": 0.25, "drop_low": -0.1, "drop_high": 0.6},
    },
    "latency/resnet56/onnxruntime": {
        "median_ms": {"dense fp32": 4.0, "dense int8": 2.0},
        "ratios": {"dense int8": {"ratio": 0.5, "low": 0.4, "high": 0.625}},
        "doubts": ["load average 4"],
    },
    "calibration/resnet56/dense/minmax": {"snr_db": 31.24, "drop": 0.2},
    "scheme/resnet56/dense/u8s8": {"exact_db": 30.87, "here_db": 18.95},
}


def lines(cells: dict[str, Any]) -> list[str]:
    made = table(
        cells, ["resnet56", "resnet50"], ["onnxruntime", "openvino"], METHODS, list(SCHEMES)
    )
    return made.splitlines()


def test_a_row_has_accuracy_size_and_ratio() -> None:
    found = [line for line in lines(CELLS) if line.startswith("| resnet56, dense | ONNX")]
    assert found == [
        "| resnet56, dense | ONNX Runtime | fp32 | 87.60 % | – | 3.43 | 4.00 | 1 | – |",
        (
            "| resnet56, dense | ONNX Runtime | int8 | 87.35 % | -0.25 (-0.60 to +0.10) | 0.97 | 2.00 "
            "| 2.00 (1.60 to 2.50) | 2 of 83 |"
        ),
    ]


def test_methods_schemes_and_doubts_are_told() -> None:
    made = lines(CELLS)
    assert "| resnet56, dense | 31.2 (+0.20) | – | – |" in made
    assert any("30.9 / 18.9" in line or "30.9 / 19.0" in line for line in made)
    assert "resnet56: trained." in made
    assert made[-1].endswith("on ONNX Runtime: load average 4.")


def test_what_is_not_there_is_left_out() -> None:
    assert lines({}) == []
    one = {"latency/resnet56/openvino": CELLS["latency/resnet56/onnxruntime"]}
    assert sum(line.startswith("| resnet56, ") for line in lines(one)) == 4
    assert "| resnet56, slim | OpenVINO | int8 | – | – | – | – | – | – |" in lines(one)


def test_a_cell_is_made_once_for_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"settings": "its own", "value": len(made)}

    chosen = argparse.Namespace(out=tmp_path, target="cpu", max_drop=0.5)
    for settings in ({"images": 5}, {"images": 5}, {"images": 6}):
        bench = engines.Bench(chosen)  # a new process would read the file, too
        value = bench.cell("x/y", settings, make)["value"]
    assert (len(made), value) == (2, 2)
    stored = json.loads((tmp_path / "engines.json").read_text())["cells"]["x/y"]
    assert stored == {"made_with": {"images": 6}, "settings": "its own", "value": 2}
    assert (tmp_path / "engines.md").read_text().startswith("# Engines")
