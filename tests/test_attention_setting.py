"""``--attention`` reaches the tracer from the command line, a config and Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nets import build
from typer.testing import CliRunner

from mint_deploy.cli import app
from mint_deploy.errors import ConfigError, TraceError
from mint_deploy.settings import Request
from mint_deploy.trace import trace

NET = """
import torch
from attention_nets import MultiheadNet

def make():
    torch.manual_seed(0)
    return MultiheadNet()
"""


@pytest.mark.parametrize(("given", "sizes"), [("heads", [16, 4, 16]), ("width", [16, 4, 4, 16])])
def test_the_doctor_reads_heads_or_widths(given: str, sizes: list[int], tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(NET)
    arguments = ["doctor", f"{file}:make", "--input", "2x7x6", "--attention", given, "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [g["size"] for g in json.loads(done.output)["groups"].values()] == sizes


def test_another_word_is_refused() -> None:
    model, inputs = build("multihead")
    with pytest.raises(TraceError, match="attention is 'wide'; expected 'heads' or 'width'"):
        trace(model, inputs, attention="wide")
    with pytest.raises(ConfigError, match="--attention is 'wide', expected"):
        Request(attention="wide")
    assert Request().attention == "heads"
