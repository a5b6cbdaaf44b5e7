"""What is in the wheel, that the documents say what is run, and that their links resolve."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "pip install -c constraints.txt . && mint-deploy compress --target jetson",
    "pip install -c constraints.txt '.[test]' && pytest",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_has_the_package_and_its_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {f"mint_deploy/targets/{p.name}" for p in (ROOT / "targets").glob("*.toml")}
    assert expected, "there are no targets"
    expected |= {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "mint_deploy").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert expected <= names, sorted(expected - names)
    assert "mint_deploy/py.typed" in names
    assert any(n.startswith("mint_deploy/report/templates/") for n in names)


def test_the_wheel_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"mint_deploy"}


def test_the_wheel_has_the_command_and_the_license(wheel: zipfile.ZipFile) -> None:
    text = {n.split("/")[-1]: wheel.read(n).decode() for n in wheel.namelist() if "dist-info" in n}
    assert "mint-deploy = mint_deploy.cli:main" in text["entry_points.txt"]
    assert "Apache License" in text["LICENSE"]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_and_ci_say_the_same_commands(command: str) -> None:
    assert f"    {command}\n" in (ROOT / "README.md").read_text()
    assert f"    {command}\n" in (ROOT / ".ci" / "run").read_text()


def test_ci_lints_and_checks_types_before_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    places = [
        script.index(part)
        for part in ("ruff check", "ruff format --check", "\n    mypy\n", *reversed(COMMANDS))
    ]
    assert places == sorted(places)


DOCUMENTS = sorted(p for p in ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    text = re.sub(r"^(    |```).*$", "", document.read_text(), flags=re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (document.parent / place) if place else document
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


def headings(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_no_committed_text_names_a_private_path() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # where this is no checkout (an archive, CI's copy), every file counts
    names = listed.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    texts = [n for n in names if Path(n).suffix in {".py", ".md", ".toml", ".txt", ".html"}]
    assert len(texts) > 20
    pattern = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w")
    assert [n for n in texts if pattern.search((ROOT / n).read_text())] == []
