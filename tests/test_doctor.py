"""``mint-deploy doctor MODEL``: the table, the picture, and what it refuses."""

from __future__ import annotations

import importlib
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny

from mint_deploy import cli, files
from mint_deploy.overview import Overview

MODEL = ("doctor", "net.py:make", "--input", "1x1x8x8")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    (tmp_path / "raises.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 4, 3)\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('no such luck')\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run


def test_the_table_has_a_line_for_every_group(command: Command) -> None:
    found = command("doctor", "resnet8-digits")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].startswith("resnet8-digits: 8 layers, ")
    assert "6 pruning groups can be cut (0 of them restricted)" in lines[1]
    assert "100 % of the MACs; 2 are frozen" in lines[1]
    (stream,) = (line for line in lines if line.split()[:1] == ["conv1"])
    assert "with layer1.0.conv2, layer2.0.conv2, layer3.0.conv2" in stream
    assert "8 to 32 by 8" in stream
    (head,) = (line for line in lines if line.split()[:1] == ["linear"])
    assert "frozen: reaches the network's output" in head
    assert len(lines) == 2 + 1 + 8


def test_fast_says_that_nothing_was_tried(command: Command, monkeypatch) -> None:
    tracing = importlib.import_module("mint_deploy.trace")  # the package's name for it is the verb
    trace, probes = tracing.trace, []
    monkeypatch.setattr(
        tracing, "trace", lambda *a, probe, **k: probes.append(probe) or trace(*a, probe=probe, **k)
    )
    assert "--fast" in command(*MODEL, "--fast").out
    assert "--fast" not in command(*MODEL).out
    assert probes == [False, True]


def test_the_target_decides_the_widths(command: Command) -> None:
    assert "in steps of 8" in command(*MODEL, "--fast", "--target", "jetson").out
    assert "in steps of 16" in command(*MODEL, "--fast", "--target", "cpu-avx512").out


def test_json_holds_groups_reasons_and_the_overview(command: Command) -> None:
    body = json.loads(command("doctor", "resnet8-digits", "--fast", "--json").out)
    assert body["groups"]["conv1"]["size"] == 32
    assert body["frozen"]["linear"] == "reaches the network's output"
    found = files.decode(Overview, body["overview"])
    assert not found.probed
    assert {g.name for g in found.groups} == {*body["groups"], *body["frozen"]}
    assert found.macs == body["cost"]["macs"]


def test_the_picture_is_written(command: Command, here: Path) -> None:
    found = command("doctor", "resnet8-digits", "--fast", "--svg", "net.svg")
    assert found.code == 0
    assert "pruning groups" in found.out
    tree = ET.parse(here / "net.svg").getroot()  # noqa: S314 - what this package wrote
    assert "Dependency graph of resnet8-digits" in (tree.get("aria-label") or "")
    again = (here / "net.svg").read_bytes()
    command("doctor", "resnet8-digits", "--fast", "--svg", "net.svg")
    assert (here / "net.svg").read_bytes() == again


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("doctor", "resnet57-cifar10"), "did you mean 'resnet56-cifar10'"),
        (("doctor", "net.py:make"), "--input 1x3x32x32"),
        (("doctor", "net.py:make", "--input", "1x3x8x8"), "give example inputs that it accepts"),
        (("doctor", "net.py:make", "--input", "3,32"), "expected sizes such as 1x3x32x32"),
        (("doctor", "raises.py:Net", "--input", "1x1x8x8"), "no such luck (raises.py:7)"),
        ((*MODEL, "--target", "jetsen"), "did you mean 'jetson'"),
        ((*MODEL, "--svg", "net.png"), "expected a file whose name ends in .svg"),
        ((*MODEL, "--svg", "folder.svg"), "which is a folder"),
        ((*MODEL, "--svg", "nowhere/net.svg"), "there is no folder nowhere; make it first"),
        ((*MODEL, "--svg", "net.py/net.svg"), "there is no folder net.py"),
        (("doctor", "--svg", "net.svg"), "--svg is about a network"),
        (("doctor", "--fast"), "--fast is about a network"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_is_exit_code_2_and_nothing_is_written(
    command: Command, here: Path, args: tuple[str, ...], said: str
) -> None:
    (here / "folder.svg").mkdir()
    before = sorted(here.rglob("*"))
    found = command(*args)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    assert [p for p in sorted(here.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_full_disk_leaves_no_half_picture(command: Command, here: Path, monkeypatch) -> None:
    (here / "net.svg").write_text("the old one")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    found = command(*MODEL, "--fast", "--svg", "net.svg")
    monkeypatch.undo()
    assert found.code == 2
    assert "cannot write net.svg: No space left on device" in found.err
    assert (here / "net.svg").read_text() == "the old one"
    assert not list(here.glob(".net.svg*"))
