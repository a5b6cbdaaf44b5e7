"""A run with dead units in its network: they leave first, and the report tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy import files, pipeline, report
from mint_deploy.artifacts import PruningPlan
from mint_deploy.report import markdown
from mint_deploy.settings import Request, from_flags

#: `dying`: 9 of 32 units are zero for every input, and one of 16 is a constant that the classifier takes up
NET = """

def dying():
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[1].weight[5:14], net[1].bias[5:14] = 0.0, -0.5
        net[4].weight[2], net[4].bias[2] = 0.0, 3.0
    return net
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    with (tmp_path / "net.py").open("a") as stream:
        stream.write(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**changes: object) -> tuple[Path, PruningPlan]:
    wanted = {**tiny.SMALL, "model": "net.py:dying", "out": "run", "round_to": 1, **changes}
    until = str(wanted.pop("until", "cut"))
    pipeline.run(Request(**wanted), until=until)  # type: ignore[arg-type]
    return Path("run"), files.read_value(Path("run") / "plan.json", PruningPlan)


def gone(plan: PruningPlan) -> list[tuple[int, ...]]:
    return [g.removed for g in plan.groups]


def networks(folder: Path) -> tuple[nn.Module, nn.Module, Tensor]:
    from mint_deploy.models import load_model

    dense = load_model("net.py:dying").model.eval()
    return dense, md.load(folder, dense), torch.randn(50, 1, 8, 8)


def test_the_whole_budget_still_loses_the_dead() -> None:
    folder, plan = run(macs=1.0, recover="none", until="repair")
    assert gone(plan) == [tuple(range(5, 14)), (2,)]
    dense, slim, x = networks(folder)
    with torch.no_grad():
        assert torch.allclose(slim(x), dense(x), atol=1e-5)
    found = files.read_json(folder / "cut.json", kind="Cut")["lossless"]
    assert found["removed"] == {"0": {"zero": list(range(5, 14))}, "3": {"constant": [2]}}
    assert found["before"]["macs"] > found["after"]["macs"] == plan.after.macs
    text = report.collect(folder)["lossless"]["text"]
    assert text.startswith("10 dead units removed, lossless: MACs")
    assert "10 dead units removed, lossless" in markdown.text(report.collect(folder))


def test_the_constant_is_not_made_up_for_twice() -> None:
    """The refit makes up for what left, and so does the fold: only one of them may."""
    folder, _ = run(macs=1.0, recover="refit", until="repair")
    dense, slim, _ = networks(folder)
    bias = dense[8].bias + 3.0 * dense[8].weight[:, 2]
    assert torch.allclose(slim[8].bias, bias, atol=0.05)
    with torch.no_grad():
        assert float((slim[8].bias - dense[8].bias).abs().max()) > 0.3


def test_widths_stay_multiples_and_the_rest_is_named() -> None:
    folder, plan = run(macs=1.0, round_to=4)
    assert [len(g.keep) for g in plan.groups] == [24, 16]
    assert set(plan.groups[0].removed) < set(range(5, 14))
    found = report.collect(folder)["lossless"]
    assert (found["removed"], found["left"]) == (8, 2)
    assert "2 dead units stay" in found["text"]


def test_the_budget_takes_the_dead_first() -> None:
    _, plan = run(macs=0.5)
    assert set(range(5, 14)) <= set(plan.groups[0].removed)
    assert 2 in plan.groups[1].removed
    assert plan.after.macs <= 0.5 * plan.before.macs


def test_they_stay_where_that_is_asked_for() -> None:
    folder, plan = run(macs=1.0, lossless=False)
    assert gone(plan) == [(), ()]
    assert report.collect(folder)["lossless"]["text"] == ""


def test_what_is_left_alone_stays_whole() -> None:
    _, plan = run(macs=1.0, ignore=("0",))
    assert gone(plan) == [(), (2,)]


def test_a_setting_and_a_flag() -> None:
    assert from_flags({}, {}).lossless is True
    assert from_flags({"lossless": False}, {}).lossless is False
    Path("mint.toml").write_text("lossless = false\n")
    from mint_deploy.settings import read_config

    assert read_config()[1] == {"lossless": False}
