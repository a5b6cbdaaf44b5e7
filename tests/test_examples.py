"""The commands of docs/own_model.md, on the files that its example writes."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mint_deploy import cli, files

DOCS = Path(__file__).parents[1] / "docs"


def commands() -> list[list[str]]:
    text = (DOCS / "own_model.md").read_text()
    return [
        shlex.split(line)
        for line in re.findall(r"^    (mint-deploy compress .*)$", text, re.MULTILINE)
    ]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example's folder, after its program wrote images, arrays and weights."""
    place = tmp_path_factory.mktemp("example")
    for source in (DOCS / "examples").glob("*.py"):
        shutil.copy(source, place)
    subprocess.run([sys.executable, "make_files.py"], cwd=place, check=True, timeout=120)
    return place


def test_every_kind_of_data_has_a_command() -> None:
    assert {value(words, "--data") for words in commands()} == {
        "imagefolder:photos",
        "npz:arrays.npz",
        "own_data.py:datasets",
        "imagefolder:unlabelled",
        "npz:unlabelled.npz",
    }


@pytest.mark.parametrize("words", commands(), ids=lambda words: value(words, "--data"))
def test_the_command_runs(
    example: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up to recovery; export and bench do not depend on where the data came from."""
    monkeypatch.chdir(example)
    monkeypatch.setattr(sys, "argv", [*words, "--until", "recover", "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    run = Path(value(words, "--out"))
    steps = files.read_json(run / "accuracy.json", kind="AccuracySteps")["steps"]
    found = {step["step"]: step for step in steps}
    unlabelled = "unlabelled" in value(words, "--data")
    final = found["recover"]["test"]
    assert final["measure"] == ("agreement" if unlabelled else "top1")
    assert final["top1"] > 0.8
    assert ("no labels" in err) == unlabelled
    assert "Multiply-adds (MACs)" in out
