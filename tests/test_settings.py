"""Settings: flags over a config over defaults; everything that makes no sense is said."""

import dataclasses
from pathlib import Path

import pytest

from mint_deploy.errors import ConfigError
from mint_deploy.settings import (
    BUDGETS,
    Request,
    from_flags,
    names_python,
    parse_floats,
    parse_input,
    read_config,
    restore,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the request


def test_the_defaults_are_the_demo_at_half_the_macs() -> None:
    request = Request()
    assert request.demo
    assert request.budget == ("macs", 0.5)
    assert request.folder == Path("runs/resnet8-digits-cpu")
    assert request.recover == "train"


@pytest.mark.parametrize(
    ("model", "target", "folder"),
    [
        ("resnet56-cifar10", "jetson", "runs/resnet56-cifar10-jetson"),
        ("nets/my net.py:make", "cpu", "runs/my-net-make-cpu"),
        ("package.module:make", "boards/mine.toml", "runs/package.module-make-mine"),
        ("Sequential (in memory)", "cpu", "runs/Sequential-in-memory-cpu"),
    ],
)
def test_where_a_run_lives(model: str, target: str, folder: str) -> None:
    assert Request(model=model, target=target).folder == Path(folder)
    assert Request(model=model, target=target, out="x/y").folder == Path("x/y")


@pytest.mark.parametrize("name", BUDGETS)
def test_one_budget(name: str) -> None:
    assert Request(**{name: 0.25}).budget == (name, 0.25)


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--ratio and --macs are two budgets"):
        Request(ratio=0.5, macs=0.5)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ratio", 1.0, r"--ratio is 1.0, expected a number from 0 to below 1"),
        ("macs", 0.0, "above 0 and at most 1"),
        ("params", 1.5, "above 0 and at most 1"),
        ("max_accuracy_drop", -1.0, "--max-accuracy-drop is -1.0"),
        ("images", 0, "positive whole number"),
        ("epochs", -2.0, "positive number"),
        ("lr", 0.0, "positive number"),
        ("seed", -1, "whole number from 0"),
        ("recover", "all", "'all', expected one of none, bn, refit, train"),
        ("device", "tpu", "expected one of cpu, cuda"),
        ("input", (1,), "the batch first"),
        ("std", (0.5, 0.0), "positive numbers"),
    ],
)
def test_what_makes_no_sense_is_said(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Request(**{name: value})  # type: ignore[arg-type]


def test_the_settings_are_every_field_but_the_place() -> None:
    names = {f.name for f in dataclasses.fields(Request)} - {"out"}
    assert set(Request(out="x").settings()) == names


# ---------------------------------------------------------------- texts


def test_sizes() -> None:
    assert parse_input("1x3x32x32") == (1, 3, 32, 32)


@pytest.mark.parametrize("text", ["", "3", "1,3,32", "1x3x", "axb", "-1x3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="expected sizes such as 1x3x32x32"):
        parse_input(text)


def test_numbers() -> None:
    assert parse_floats("mean", "0.5,.25, 1") == (0.5, 0.25, 1.0)
    with pytest.raises(ConfigError, match=r"--mean is '0\.5;1'"):
        parse_floats("mean", "0.5;1")


# ---------------------------------------------------------------- config files


def test_no_config() -> None:
    assert read_config() == (None, {})


def test_mint_toml(here: Path) -> None:
    (here / "mint.toml").write_text(
        'model = "net.py:make"\nmacs = 1\nmax-accuracy-drop = 0.5\nignore = ["a", "b"]\n'
        'input = "1x3x8x8"\nmean = [0, 0.5]\ndistill = false\nround_to = 8\n'
    )
    path, keys = read_config()
    assert path == Path("mint.toml")
    assert keys == {
        "model": "net.py:make",
        "macs": 1.0,
        "max_accuracy_drop": 0.5,
        "ignore": ("a", "b"),
        "input": (1, 3, 8, 8),
        "mean": (0.0, 0.5),
        "distill": False,
        "round_to": 8,
    }
    assert isinstance(keys["macs"], float)


def test_pyproject(here: Path) -> None:
    (here / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read_config() == (None, {})
    (here / "pyproject.toml").write_text("[tool.mint-deploy]\nseed = 4\n")
    assert read_config() == (Path("pyproject.toml"), {"seed": 4})
    (here / "mint.toml").write_text("seed = 5\n")
    assert read_config()[1] == {"seed": 5}
    assert read_config(here / "pyproject.toml")[1] == {"seed": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "max-acuracy-drop = 1",
            "unknown key 'max-acuracy-drop'; did you mean 'max-accuracy-drop'",
        ),
        ("zzz = 1", "unknown key 'zzz'; known: "),
        ("macs = true", "macs is True, expected a number"),
        ("macs = '0.5'", "macs is '0.5', expected a number"),
        ("seed = 1.5", "seed is 1.5, expected a whole number"),
        ("ignore = 3", "ignore is 3, expected a list"),
        ("ignore = [3]", "ignore is 3, expected text"),
        ("distill = 1", "distill is 1, expected true or false"),
        ("macs = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_config(here: Path, text: str, said: str) -> None:
    (here / "mint.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config()


def test_a_config_that_is_not_there(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*other\.toml"):
        read_config(here / "other.toml")


def test_flags_win() -> None:
    config = {"macs": 0.3, "seed": 4, "target": "jetson"}
    request = from_flags({"seed": 7, "target": None}, config)
    assert (request.macs, request.seed, request.target) == (0.3, 7, "jetson")


def test_a_budget_among_the_flags_replaces_the_configs() -> None:
    assert from_flags({"ratio": 0.25}, {"macs": 0.3}).budget == ("ratio", 0.25)


# ---------------------------------------------------------------- an existing run


def test_a_run_is_restored_with_changes() -> None:
    first = Request(model="a:b", macs=0.3, ignore=("x",), input=(1, 3, 8, 8), out="r")
    stored = {k: list(v) if isinstance(v, tuple) else v for k, v in first.settings().items()}
    assert restore(stored, Path("r"), {}) == first
    changed = restore(stored, Path("r"), {"ratio": 0.5, "epochs": None})
    assert changed.budget == ("ratio", 0.5)
    assert changed.ignore == ("x",)


def test_a_run_of_another_version_is_named() -> None:
    stored = {**Request().settings(), "flux": 1}
    with pytest.raises(ConfigError, match="setting 'flux' is not known"):
        restore(stored, Path("r"), {})


def test_which_python_would_be_imported() -> None:
    assert names_python(Request(model="resnet56-cifar10", data="imagefolder:photos")) == []
    request = Request(model="net.py:make", data="data.py:parts", loss="l.py:f", metric="m:f")
    assert names_python(request) == ["net.py:make", "data.py:parts", "l.py:f", "m:f"]
