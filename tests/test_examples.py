"""The example's commands, as the README gives them, on the data that the example writes."""

import importlib.util
import itertools
import shlex
import sys
from pathlib import Path

import pytest

from mint_deploy import cli, files

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[list[str]]:
    """The indented command lines of a text, those that a backslash continues joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    mint-deploy compress ex")]


README = commands((ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``python examples/own_network.py shapes`` was run."""
    place = tmp_path_factory.mktemp("example")
    (place / "examples").mkdir()
    source = place / "examples" / "own_network.py"
    source.write_text((ROOT / "examples" / "own_network.py").read_text())
    spec = importlib.util.spec_from_file_location("own_network", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(place / "shapes")
    return place


def test_the_readme_has_the_three_kinds_of_data() -> None:
    assert len(README) == 3
    said = " ".join(" ".join(words) for words in README)
    for kind in ("npz:shapes/shapes.npz", "imagefolder:shapes/images", "npz:shapes/unlabelled.npz"):
        assert kind in said


def test_the_example_says_commands_that_the_readme_has() -> None:
    own = commands((ROOT / "examples" / "own_network.py").read_text())
    assert own
    assert [words for words in own if words not in README] == []


@pytest.mark.parametrize("words", README, ids=lambda words: words[words.index("--data") + 1])
def test_the_commands_run(
    shapes: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up to recovery, and shorter; export and bench are those of every other run."""
    monkeypatch.chdir(shapes)
    quick = ["--until", "recover", "--epochs", "1", "--images", "200", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", [*words, *quick])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    given = dict(itertools.pairwise(words))
    run = Path(given.get("--out", "runs/own_network-make_net-cpu"))
    steps = files.read_json(run / "accuracy.json", kind="AccuracySteps")["steps"]
    found = {s["step"]: s for s in steps}
    measure = "agreement" if "unlabelled" in " ".join(words) else "top1"
    assert found["recover"]["test"]["measure"] == measure
    assert found["recover"]["test"]["top1"] > 0.6
    assert ("no labels" in err) == (measure == "agreement")
    assert "Multiply-adds" in out


def test_the_example_network_is_trained(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mint_deploy.data import load_data
    from mint_deploy.evaluate import evaluate
    from mint_deploy.models import load_model

    monkeypatch.chdir(shapes)
    net = load_model("examples/own_network.py:make_net", "shapes/net.safetensors")
    data = load_data("npz:shapes/shapes.npz")
    assert evaluate(net.model, data.validation).accuracy.top1 > 0.7
