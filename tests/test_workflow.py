"""The workflow of docs/examples: its commands are run as GitHub's runner runs them, on tiny models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from onnx_models import save_conv
from typer.main import get_command

from mint_deploy import cli
from mint_deploy.measurement_file import read

DOCS = Path(__file__).parents[1] / "docs"
WORKFLOW = DOCS / "examples" / "latency-gate.yml"
SCRIPTS = sysconfig.get_path("scripts")

#: settings that a test has the time for
SMALL = {
    "BENCH_SECONDS": "1.5",
    "BENCH_RESTARTS": "2",
    "MAX_LATENCY": "+900%",
    "MAX_MEMORY": "+900%",
}


# ---------------------------------------------------------------- the file


@dataclass
class Step:
    name: str
    lines: list[str] = field(default_factory=list)

    @property
    def run(self) -> str:
        """The script of a step, as YAML's block scalar gives it; "" for an action."""
        text = "\n".join(self.lines)
        found = re.search(
            r"^\s+run: (?:\|\n(?P<block>(?:\s+.*\n?)*)|(?P<line>.*))", text, re.MULTILINE
        )
        if found is None:
            return ""
        if found["line"] is not None:
            return found["line"]
        block = found["block"].split("\n")
        depth = len(block[0]) - len(block[0].lstrip())
        kept = []
        for line in block:
            if line.strip() and len(line) - len(line.lstrip()) < depth:
                break
            kept.append(line[depth:])
        return "\n".join(kept)


def environment(text: str, depth: int) -> dict[str, str]:
    """The mapping below ``env:`` at a depth."""
    found = re.search(rf"^{' ' * depth}env:\n((?:{' ' * (depth + 2)}\S.*\n)+)", text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    pairs = (re.fullmatch(r"\s*(\w+): \"?([^\"#]*?)\"?(?:\s+#.*)?", line) for line in lines)
    return {pair[1]: pair[2] for pair in pairs if pair}


def jobs() -> dict[str, str]:
    """Name -> text of a job."""
    _, _, below = WORKFLOW.read_text().partition("\njobs:\n")
    parts = re.split(r"^  (\w[\w-]*):\n", below, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def steps(job: str) -> Iterator[Step]:
    step = None
    for line in jobs()[job].partition("    steps:\n")[2].splitlines():
        if line.startswith("      - "):
            if step:
                yield step
            name = re.match(r"\s+- name: (.*)", line)
            step = Step(name[1] if name else "")
        elif step:
            step.lines.append(line)
    assert step
    yield step


def script(job: str, name: str) -> str:
    (found,) = [step.run for step in steps(job) if step.name == name]
    assert found
    return found


def test_the_extraction_finds_every_script_and_setting():
    """As many as the file has, so that none is passed over."""
    text = WORKFLOW.read_text()
    scripts = [step.run for job in jobs() for step in steps(job) if step.run]
    assert len(scripts) == len(re.findall(r"^\s+run:", text, re.MULTILINE)) == 7
    assert set(environment(text, 0)) == {"MINT_DEPLOY", "MODEL", *SMALL, "MAX_SIZE"}
    assert environment(text, 0)["MAX_LATENCY"] == "+5%"
    assert environment(jobs()["stored-baseline"], 4) == {"BASELINE": "latency-baseline.jsonl"}
    for run in scripts:  # nothing of an event is pasted into a shell
        assert "${{" not in run
    assert all(len(line) <= 120 for line in text.splitlines())


def test_every_variable_of_a_script_is_set_by_the_workflow_or_the_runner():
    runner = {"HOME", "GITHUB_STEP_SUMMARY", "GITHUB_PATH", "RUNNER_TEMP"}
    text = WORKFLOW.read_text()
    for job, body in jobs().items():
        known = {*environment(text, 0), *environment(body, 4), *runner}
        for step in steps(job):
            assert set(re.findall(r"\$\{?(\w+)", step.run)) <= known, step.name


def test_every_command_is_one_of_ours_with_options_that_it_has():
    commands = get_command(cli.app).commands
    options = {name: {o for p in c.params for o in p.opts} for name, c in commands.items()}
    seen = set()
    texts = [step.run for job in jobs() for step in steps(job)]
    texts += re.findall(
        r"^    (?:.*&& )?(mint-deploy .*)$", (DOCS / "ci.md").read_text(), re.MULTILINE
    )
    for text in texts:
        for command, rest in re.findall(r"mint-deploy (\w+)((?:[^\n\\]|\\\n)*)", text):
            seen.add(command)
            assert set(re.findall(r"(?<=\s)--[\w-]+", rest)) <= options[command], rest
    assert seen >= {"bench", "compare"}


# ---------------------------------------------------------------- its commands


@dataclass
class Place:
    """A runner: a workspace, a home, and the files that GitHub names."""

    root: Path

    def run(
        self, job: str, name: str, *, ours: str = "", **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a step as ``bash -e``, GitHub's default; its summary is a file of its own.

        ``ours``: a folder with another ``mint-deploy``.
        """
        text = WORKFLOW.read_text()
        home, summary = self.root / "home", self.root / "summary.md"
        home.mkdir(exist_ok=True)
        summary.write_text("")
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "RUNNER_"))},
            **environment(text, 0), **environment(jobs()[job], 4), **SMALL, **changes,
            "HOME": str(home), "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true",
            "PATH": os.pathsep.join([ours or SCRIPTS, os.environ["PATH"]]),
        }  # fmt: skip
        return subprocess.run(
            ["bash", "-e", "-c", script(job, name)], cwd=self.root, env=env, check=False,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    @property
    def summary(self) -> str:
        return (self.root / "summary.md").read_text()

    def suite(self) -> ET.Element:
        return ET.parse(self.root / "latency.xml").getroot()[0]  # noqa: S314  # our own document


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A pull request whose model is a little larger, and both measured."""
    if shutil.which("mint-deploy", path=SCRIPTS) is None:
        pytest.skip("the command mint-deploy is not installed beside this Python")
    root = tmp_path_factory.mktemp("workspace")
    for name, depth in (("base", 2), ("head", 3)):
        (root / name).mkdir()
        save_conv(root / name / "model.onnx", depth=depth)
    found = Place(root)
    measured = found.run("in-turns", "Measure")
    assert measured.returncode == 0, measured.stderr
    return found


def test_both_models_are_measured_in_turns(place):
    head, base = read(place.root / "turns.jsonl")
    assert (head.task.label, base.task.label) == ("head/model.onnx", "base/model.onnx")
    assert base.partner == "head/model.onnx"
    assert len(head.restarts_ns) == len(base.restarts_ns) >= 2


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 0), (2, 1), (70, 1), (130, 1)])
def test_measuring_goes_on_to_the_verdict_where_a_limit_is_broken_and_nowhere_else(
    tmp_path, code, ends
):
    command = tmp_path / "bin" / "mint-deploy"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexit {code}\n")
    command.chmod(0o755)
    done = Place(tmp_path).run("in-turns", "Measure", ours=str(command.parent))
    assert done.returncode == ends


@pytest.mark.parametrize(
    ("limits", "code", "broken"),
    [({"MAX_SIZE": "+100%"}, 0, set()), ({}, 1, {"size"}), ({"MAX_SIZE": "+five"}, 2, None)],
)
def test_the_pull_request_is_judged(place, limits, code, broken):
    """The larger file breaks the default limit of its size, whatever the clock says."""
    (place.root / "latency.xml").unlink(missing_ok=True)
    judged = place.run("in-turns", "Judge", **limits)
    assert judged.returncode == code, judged.stderr
    if broken is None:
        assert "limit '+five' cannot be read" in judged.stderr
        assert place.summary == ""
        assert not (place.root / "latency.xml").exists()
        return
    suite = place.suite()
    assert int(suite.attrib["tests"]) == 3
    failed = {c.attrib["name"].split(" (")[0] for c in suite if c.find("failure") is not None}
    assert failed == broken
    state = judged.stdout.splitlines()[-1]
    assert place.summary.startswith(f"## mint-deploy: {state}\n")
    assert ("::error title=mint-deploy compare%3A size fail::" in judged.stderr) == (code == 1)
    assert ("**fail**" in place.summary) == (code == 1)


def test_a_stored_baseline_is_kept_and_held_against(place):
    job = "stored-baseline"
    shutil.copy(place.root / "base" / "model.onnx", place.root / "model.onnx")
    measured = place.run(job, "Measure")
    assert measured.returncode == 0, measured.stderr
    early = place.run(job, "Judge")
    assert early.returncode == 0
    assert "No baseline yet" in place.summary
    assert place.run(job, "Make the baseline anew").returncode == 0
    judged = place.run(job, "Judge")
    assert judged.returncode == 0, judged.stderr
    assert place.summary.startswith("## mint-deploy: ")
    assert int(place.suite().attrib["failures"]) == 0
    stored = place.root / "home" / "latency-baseline.jsonl"
    (m,) = [json.loads(line) for line in stored.read_text().splitlines()]
    m["machine"]["hostname"] = "another"
    stored.write_text(json.dumps(m) + "\n")
    elsewhere = place.run(job, "Judge")
    assert elsewhere.returncode == 0
    assert "::warning title=mint-deploy compare%3A latency inconclusive::" in elsewhere.stderr
    assert "hostname is 'another'" in elsewhere.stderr
