"""Bad input on the command line: exit code 2, a message that says what to do, and nothing written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from torch import nn

import mint_deploy as md
from mint_deploy import cli

MODELS = """
import torch
from torch import nn
from net import make

class Wrapped(nn.Module):
    def __init__(self, out=None, before=None):
        super().__init__()
        self.net, self.out, self.before = make(), out, before
    def forward(self, x):
        x = self.before(x) if self.before else x
        return self.out(self.net(x)) if self.out else self.net(x)

def no_tensor(): return Wrapped(out=lambda y: "cat")
def classes(): return Wrapped(out=lambda y: y.argmax(1))
def raises():
    def fail(x): raise ValueError("not today")
    return Wrapped(before=fail)
def three_channels(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(3))[:2]
def meta():
    model = make()
    model[3].to("meta")
    return model
def quantised():
    import warnings
    warnings.simplefilter("ignore")
    linear = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(64, 8)), {nn.Linear})
    return nn.Sequential(nn.Flatten(), linear, nn.Linear(8, 3))
def scripted():
    import warnings
    warnings.simplefilter("ignore")
    return torch.jit.trace(make().eval(), torch.zeros(1, 1, 8, 8))
def lazy(): return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(3))
def uncopyable():
    model = make()
    model.rows = (row for row in [1])
    return model
def a_dict(): return make().state_dict()
class Fixed(Wrapped):
    # another path for one sample than for several, so its batch cannot be left open
    def forward(self, x):
        return self.net(x) if len(x) == 1 else self.net(x) + 0.0 * len(x)
def fixed(): return Fixed()
def wider():
    model = make()
    model[0], model[1] = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
    model[3] = nn.Conv2d(24, 16, 3, padding=1)
    return model
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    (tmp_path / "odd.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


@pytest.fixture
def command(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    def run(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    yield run
    sys.modules.pop("net", None)


def refused(said: Said, words: str) -> None:
    """Exit code 2, the message on stderr alone, and no traceback."""
    assert said.code == 2, said.err
    assert words in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert said.out == ""


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    files = (p for p in files if "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no_tensor", "the model returns no floating tensor (found str)"),
        ("classes", "found torch.int64"),
        ("raises", "the model raises ValueError on inputs"),
        ("three_channels", "to have 3 channels, but got 1 channels instead"),
        ("meta", "'3.weight' is a meta tensor"),
        ("quantised", "is quantised"),
        ("scripted", "is TorchScript"),
        ("lazy", "has no shape yet"),
        ("uncopyable", "the model cannot be copied"),
        ("a_dict", "returned a OrderedDict; expected an nn.Module"),
        ("nothing", "nothing"),
    ],
)
@pytest.mark.parametrize("verb", ["compress", "doctor"])
def test_bad_models_on_the_command_line(
    verb: str, model: str, words: str, command: Command, here: Path
) -> None:
    before = tree(here)
    rest = (
        ("--data", "npz:data.npz", "--out", "run") if verb == "compress" else ("--input", "2x1x8x8")
    )
    refused(command(verb, f"odd.py:{model}", *rest), words)
    assert tree(here) == before
    assert not (here / "run").exists()


SMALL = ("net.py:make", "--data", "npz:data.npz", "--workers", "1", "--quiet")


def test_inputs_of_another_size_on_the_command_line(command: Command, here: Path) -> None:
    before = tree(here)
    refused(command("doctor", "net.py:make", "--input", "1x3x8x8"), "but got 3 channels instead")
    refused(
        command("doctor", "net.py:make", "--input", "1x8"), "raises RuntimeError on inputs [1, 8]"
    )
    assert tree(here) == before


@pytest.fixture
def run(command: Command, here: Path) -> Path:
    """A run that has come to its plan, in steps of 4."""
    said = command("compress", *SMALL, "--round-to", "4", "--until", "plan", "--out", "run")
    assert said.code == 0, said.err
    return here / "run"


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads((run / "plan.json").read_text())
    change(body["groups"][0])
    (run / "plan.json").write_text(json.dumps(body))


def no_reader(group: dict[str, Any]) -> None:
    group["members"] = [m for m in group["members"] if not m["reads"]]


EDITS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda g: g.update(keep=[0, 1, 2, 16]), "names 16, which is outside"),
    (lambda g: g.update(keep=[0, 1, 1, 2]), "names 1 twice"),
    (lambda g: g.update(keep=[]), "keeps nothing"),
    (lambda g: g.update(keep=[0, 1, 2]), "its round_to is 4: keep 4, or write round_to 1"),
    (lambda g: g.update(keep=list(range(13))), "keep 12 or 16, or write round_to 1"),
    (lambda g: g.update(keep=["a"]), "expected int, found 'a'"),
    (lambda g: g.update(size=8), "lists 16 of 8 units"),
    (no_reader, "more than 'keep' and 'round_to' was edited"),
    (lambda g: g["members"][0].update(tensor="3.weight"), "share slices of '3.weight'"),
    (lambda g: g["members"][0].update(tensor="9.weight"), "more than 'keep' and 'round_to'"),
]


@pytest.mark.parametrize(("change", "words"), EDITS)
def test_edited_plans_on_the_command_line(
    change: Callable[[dict[str, Any]], None], words: str, command: Command, run: Path
) -> None:
    edit(run, change)
    before = tree(run)
    refused(command("cut", "run", "--quiet"), words)
    refused(command("inspect", "run/plan.json"), words)
    other = command(
        "compress", *SMALL, "--plan", "run/plan.json", "--out", "other", "--until", "cut"
    )
    refused(other, words)
    assert not list(Path("other").glob("plan.json")), "no plan, and nothing cut"
    left = tree(run)
    left.pop("run.json")
    before.pop("run.json")
    assert left == before


def test_the_plan_of_another_model_on_the_command_line(command: Command, run: Path) -> None:
    wide = (
        "odd.py:wider",
        *SMALL[1:],
        "--plan",
        "run/plan.json",
        "--out",
        "wide",
        "--until",
        "cut",
    )
    refused(command("compress", *wide), "'0.weight' has shape [24, 1, 3, 3], the plan expects 16")
    assert not (run.parent / "wide" / "slim.safetensors").exists()


def test_a_plan_and_a_budget_on_the_command_line(command: Command, run: Path) -> None:
    before = tree(run.parent)
    both = ("compress", *SMALL, "--plan", "run/plan.json", "--macs", "0.5", "--out", "other")
    refused(command(*both), "--plan run/plan.json says itself what stays; leave --macs out")
    none = ("compress", *SMALL, "--plan", "none.json", "--out", "other")
    said = command(*none)
    refused(said, "cannot read none.json")
    left = {n: d for n, d in tree(run.parent).items() if not n.startswith("other/")}
    assert left == before


def test_an_edited_plan_is_replayed_with_its_own_costs(command: Command, run: Path) -> None:
    body = json.loads((run / "plan.json").read_text())
    edit(run, lambda g: g.update(keep=[9, 3, 1, 0, 15, 5], round_to=1))
    said = command("inspect", "run/plan.json")
    assert said.code == 0, said.err
    assert "since its costs were computed" in said.out
    rows = [line.split() for line in said.out.splitlines() if line.strip().startswith("0  ")]
    assert rows == [
        ["0", "6", "of", "16", "in", "steps", "of", "1"],
        ["0", "conv", "16", "6", "9216", "3456"],
    ]
    (run.parent / "mine.json").write_text((run / "plan.json").read_text())
    said = command(
        "compress", *SMALL, "--plan", "mine.json", "--until", "cut", "--out", "other", "--json"
    )
    assert said.code == 0, said.err
    made = json.loads(Path("other/plan.json").read_text())
    assert made["groups"][0]["keep"] == [0, 1, 3, 5, 9, 15]
    assert made["budget"] == {}
    assert made["notes"][-1] == "edited by hand after 'mint' had chosen"
    assert made["after"]["macs"] < made["before"]["macs"]
    assert made["after"] != body["after"]
    assert not Path("other/scores.npz").exists(), "nothing was ranked"
    slim = md.load("other")
    assert slim[0].out_channels == 6
    params = sum(p.numel() for p in slim.parameters())
    assert made["after"]["params"] == params
    # the same on the run itself, and once more without an edit
    said = command("cut", "run", "--plan", "mine.json", "--json", "--quiet")
    assert said.code == 0, said.err
    assert json.loads(said.out)["done"][-2:] == ["plan", "cut"]
    assert json.loads((run / "plan.json").read_text())["after"] == made["after"]
    assert json.loads(command("cut", "run", "--json", "--quiet").out)["done"] == []
    # a budget chooses anew
    said = command("plan", "run", "--macs", "0.6", "--json", "--quiet")
    assert said.code == 0, said.err
    assert json.loads((run / "plan.json").read_text())["budget"] == {"macs": 0.6}


def test_a_pt2_file_beside_the_onnx_file(command: Command, run: Path) -> None:
    said = command("export", "run", "--pt2", "--quiet")
    assert said.code == 0, said.err
    told = json.loads(command("inspect", "run/model.pt2", "--json").out)
    plan = json.loads(command("inspect", "run/plan.json", "--json").out)
    assert told["what"] == "an exported program without pickles"
    assert told["plan"] == plan["digest"]
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(md.load("run/model.pt2")(x), md.load("run")(x))
    data = bytearray(Path("run/model.pt2").read_bytes())
    data[len(data) // 2] ^= 1
    Path("run/model.pt2").write_bytes(data)
    refused(command("inspect", "run/model.pt2"), "damaged")


def test_a_pt2_file_of_a_network_that_fixes_its_batch(command: Command, here: Path) -> None:
    said = command(
        "compress", "odd.py:fixed", *SMALL[1:-1], "--ratio", "0.25", "--round-to", "2", "--epochs", "1",
        "--recover", "none", "--until", "recover", "--out", "run",
    )  # fmt: skip
    assert said.code == 0, said.err
    said = command("export", "run", "--pt2")
    assert said.code == 0, said.err
    assert "model.pt2 is for batches of 1 alone" in " ".join(said.err.split())
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(md.load("run/model.pt2")(x), md.load("run")(x))


def test_weights_that_do_not_fit_on_the_command_line(command: Command, here: Path) -> None:
    before = tree(here)
    torch.save({"other.weight": torch.zeros(3)}, here / "other.pt")
    said = command("compress", *SMALL, "--weights", "other.pt", "--out", "run")
    refused(said, "missing in the file: 0.bias")
    (here / "other.pt").unlink()
    assert tree(here) == before
    torch.save(nn.Linear(2, 2), here / "model.pt")
    said = command("compress", *SMALL, "--weights", "model.pt", "--out", "run")
    refused(said, "holds more than tensors")
    (here / "model.pt").unlink()
    assert tree(here) == before
