"""``compare`` on the command line: its sides, its exit codes, and what GitHub's runner reads of it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdicts import FIGURES, MACHINE, NASTY, around, made, of, turns

from mint_deploy import cli, files
from mint_deploy.cli import judge
from mint_deploy.cli.actions import SUMMARY_BYTES, annotate, append_summary
from mint_deploy.compare import Check, Verdict
from mint_deploy.errors import DataError
from mint_deploy.measurement_file import save, write
from mint_deploy.report import words
from mint_deploy.report.formats import Judged, known


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def compare(monkeypatch, capsys, tmp_path):
    """Run ``mint-deploy compare`` in an empty folder, outside of any CI."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args) -> Said:
        monkeypatch.setattr(sys, "argv", ["mint-deploy", "compare", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    write("base.jsonl", [of()])
    write("same.jsonl", [of()])
    write("slow.jsonl", [of(2e6)])
    write("unsure.jsonl", [of(1.05e6, spread=0.05)])
    return run


@pytest.fixture
def runs(compare, tmp_path):
    """Two run folders of an older version, that only deploy.json knows the sizes of."""
    for name, size, top1 in (("before", 5_000, 0.921), ("after", 5_100, 0.913)):
        measured = [of(2e6, label="dense"), of(1e6, label="slim")]
        save(name, [dataclasses.replace(m, figures={}) for m in measured])
        body = {label: {"bytes": size} for label in ("dense", "slim")}
        files.write_json(f"{name}/deploy.json", {**body, "target": {}}, kind="Deploy")
        judged = {"measure": "top1", "part": "test", "top1": top1, "samples": 1000}
        steps = [
            {"step": "dense", "validation": {**judged, "top1": 0.95}, "test": None},
            {"step": "recover", "validation": {**judged, "top1": top1 - 0.1}, "test": judged},
            {"step": "control", "validation": judged, "test": {**judged, "top1": 0.1}},
        ]
        files.write_json(f"{name}/accuracy.json", {"steps": steps}, kind="AccuracySteps")
    return tmp_path


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("now", "options", "code", "state"),
    [
        ("same.jsonl", (), 0, "pass"),
        ("slow.jsonl", (), 1, "fail"),
        ("slow.jsonl", ("--max-latency", "+150%"), 0, "pass"),
        ("slow.jsonl", ("--strict",), 1, "fail"),
        ("unsure.jsonl", (), 0, "inconclusive"),
        ("unsure.jsonl", ("--strict",), 3, "inconclusive"),
        ("unsure.jsonl", ("--confidence", "0.1", "--max-latency", "+6%"), 0, "pass"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_exit_codes(compare, now, options, code, state, form):
    found = compare("base.jsonl", now, *options, "--format", form)
    assert found.code == code
    if form == "json":
        body = json.loads(found.out)
        assert (body["state"], body["exit_code"]) == (state, code)
    else:
        assert found.out.splitlines()[-1] == state
    if state == "fail":
        assert f"error: {now} is worse than base.jsonl" in found.err
    elif state == "inconclusive":
        assert found.err.startswith("error:" if code else "warning:")
    else:
        assert found.err == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none.jsonl", "base.jsonl"), "cannot read none.jsonl"),
        (("base.jsonl", "base.jsonl#slim"), "no measurement called 'slim'; it has: model"),
        (("base.jsonl", "two.jsonl"), "threads is 1 and 2"),
        (("base.jsonl", "same.jsonl", "--max-latency", "five"), "limit 'five' cannot be read"),
        (("base.jsonl", "same.jsonl", "--max-latency", "+3"), "expected a percentage"),
        (("base.jsonl", "same.jsonl", "--format", "junits"), "did you mean 'junit'"),
        (("base.jsonl", "same.jsonl", "--confidence", "95"), "confidence is 95"),
        (("base.jsonl", "same.jsonl", "--max-accuracy-drop", "1"), "compare two run folders"),
        (("base.jsonl", "old.jsonl", "--max-size", "+0%"), "without its size"),
        (("base.jsonl", "cut.jsonl"), "the file ends in the middle of it"),
        (("base.jsonl", "same.jsonl", "--summary", "."), "cannot write the summary"),
    ],
)  # fmt: skip
def test_bad_input_is_exit_code_2_and_names_what_is_wrong(compare, args, said):
    write("two.jsonl", [of(threads=2)])
    write("old.jsonl", [dataclasses.replace(of(), figures={})])
    Path("cut.jsonl").write_text(Path("base.jsonl").read_text()[:400])
    found = compare(*args)
    assert found.code == 2
    assert said in " ".join(found.err.split())
    assert "Traceback" not in found.err
    if "--summary" not in args:
        assert found.out == ""


def test_every_limit_reaches_its_figure(compare):
    """And what is named a maximum is one."""
    worse = {
        "latency": ("--max-latency", {"restarts_ns": of(2e6).restarts_ns}),
        "throughput": ("--min-throughput", {"restarts_ns": of(2e6).restarts_ns}),
        "memory": ("--max-memory", {"peak_rss_bytes": 90 << 20}),
        "gpu memory": ("--max-gpu-memory", {"gpu_bytes": 200}),
        "energy": ("--max-energy", {"energy_mj": 9.0}),
        **{
            name: (f"--max-{name}", {"figures": {**FIGURES, key: 1e9}})
            for name, key in (("size", "file_bytes"), ("params", "params"), ("macs", "macs"),
                              ("weights", "weight_bytes"), ("activations", "peak_activation_bytes"))
        },
    }  # fmt: skip
    base = dataclasses.replace(of(), energy_mj=3.0, gpu_bytes=100)
    write("full.jsonl", [base])
    for name, (option, change) in worse.items():
        write("worse.jsonl", [dataclasses.replace(base, **change)])
        limit = "-5%" if option.startswith("--min") else "+5%"
        found = compare("full.jsonl", "worse.jsonl", option, limit, "--json")
        (check,) = json.loads(found.out)["checks"]
        assert (found.code, check["name"], check["state"]) == (1, name, "fail")
        assert compare("full.jsonl", "full.jsonl", option, limit).code == 0
    calls = tuple(range(1_000_000, 1_000_700))
    for p in ("p90", "p95", "p99"):
        tail = tuple(v if i < 600 else 2 * v for i, v in enumerate(calls))
        write("quick.jsonl", [made([], restarts_ns=(calls,) * 3)])
        write("tail.jsonl", [made([], restarts_ns=(tail,) * 3)])
        found = compare("quick.jsonl", "tail.jsonl", f"--max-{p}", "+5%", "--json")
        assert [c["name"] for c in json.loads(found.out)["checks"]] == [p]
        assert found.code == 1


# ---------------------------------------------------------------- sides


def test_one_label_of_a_file_that_was_measured_in_turns(compare):
    weather = [1e6, 1.3e6, 0.8e6, 1.6e6, 1.1e6]
    write("turns.jsonl", turns(weather, [0.9 * w for w in weather]))
    found = compare("turns.jsonl#dense", "turns.jsonl#slim", "--max-latency", "-5%", "--json")
    assert found.code == 0, found.err
    body = json.loads(found.out)
    assert body["pairs"][0]["interleaved"]
    assert body["state"] == "pass"
    assert compare("turns.jsonl#slim", "turns.jsonl#dense").code == 1
    both = compare("turns.jsonl", "turns.jsonl", "--json")
    assert len(json.loads(both.out)["checks"]) == 2


def test_a_file_whose_name_has_a_number_sign_is_that_file(compare):
    write("base#1.jsonl", [of()])
    assert compare("base#1.jsonl", "base#1.jsonl#model").code == 0


def test_run_folders_bring_their_sizes_and_accuracies(compare, runs):
    limits = ("--max-size", "+1%", "--max-accuracy-drop", "0.5", "--json")
    found = compare("before", "after", *limits)
    checks = {(c["name"], c["subject"].split(",")[0]): c for c in json.loads(found.out)["checks"]}
    assert set(checks) == {("size", "dense"), ("size", "slim"), ("accuracy drop", "")}
    assert (checks["size", "slim"]["baseline"], checks["size", "slim"]["now"]) == (5000, 5100)
    drop = checks["accuracy drop", ""]
    assert drop["state"] == "fail"
    assert drop["now"] == pytest.approx(0.8)
    assert found.code == 1
    assert compare("before#slim", "after#slim", "--max-size", "+2%").code == 0
    assert compare("after", "before", *limits).code == 0


def test_accuracies_that_do_not_compare_are_refused(compare, runs):
    path = runs / "after" / "accuracy.json"
    body = json.loads(path.read_text())
    for change, said in (
        ({"samples": 500}, "samples is 1000 and 500"),
        ({"measure": "agreement"}, "measure is 'top1' and 'agreement'"),
    ):
        new = json.loads(json.dumps(body))
        new["steps"][1]["test"].update(change)
        path.write_text(json.dumps(new))
        found = compare("before", "after", "--max-accuracy-drop", "1")
        assert (found.code, said in found.err) == (2, True)
    body["steps"][1]["test"] = None  # the run is not finished: both have validation
    path.write_text(json.dumps(body))
    found = compare("before", "after", "--max-accuracy-drop", "1", "--json")
    assert json.loads(found.out)["checks"][0]["now"] == pytest.approx(0.8)
    path.write_text(json.dumps({**body, "steps": body["steps"][:1]}))
    assert (
        "no step of the slim network" in compare("before", "after", "--max-accuracy-drop", "1").err
    )


def test_a_size_that_was_measured_wins_over_the_one_of_deploy_json(compare, runs):
    save("after", [of(2e6, label="dense"), of(1e6, label="slim")])
    (body,) = [json.loads(compare("before#slim", "after#slim", "--max-size", "+0%", "--json").out)]
    assert (body["checks"][0]["baseline"], body["checks"][0]["now"]) == (5000, 100_000)


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("form", known())
def test_every_format_is_all_of_stdout(compare, form):
    found = compare("base.jsonl", "slow.jsonl", "--format", form)
    assert found.code == 1
    if form in ("json", "bmf", "github-action", "github-action-bigger"):
        json.loads(found.out)
    elif form == "junit":
        ET.fromstring(found.out)  # noqa: S314  # our own document
    else:
        assert "model" in found.out


def test_junit_is_written_beside_the_result_also_where_it_fails(compare):
    found = compare("base.jsonl", "slow.jsonl", "--junit", "out/latency.xml")
    assert found.code == 1
    suite = ET.parse("out/latency.xml").getroot()[0]  # noqa: S314  # our own document
    assert suite.attrib["failures"] == "1"
    assert [p.name for p in Path("out").iterdir()] == ["latency.xml"]


def test_the_summary_is_appended_where_github_wants_it(compare, monkeypatch):
    Path("summary.md").write_text("# what came before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    compare("base.jsonl", "same.jsonl")
    compare("base.jsonl", "slow.jsonl", "--json")
    text = Path("summary.md").read_text()
    assert text.startswith("# what came before\n\n## mint-deploy: pass\n")
    assert text.count("## mint-deploy: fail\n") == 1
    compare("base.jsonl", "same.jsonl", "--summary", "mine.md")
    assert Path("mine.md").read_text().startswith("## mint-deploy: pass")
    assert Path("summary.md").read_text() == text


def test_without_github_there_are_neither_annotations_nor_a_summary(compare):
    before = sorted(Path.cwd().iterdir())
    found = compare("base.jsonl", "slow.jsonl")
    assert "::" not in found.err + found.out
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    ("now", "options", "command"),
    [
        ("slow.jsonl", (), "::error "),
        ("unsure.jsonl", (), "::warning "),
        ("unsure.jsonl", ("--strict",), "::error "),
        ("same.jsonl", (), ""),
    ],
)
def test_annotations_go_beside_the_result(compare, monkeypatch, now, options, command):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    found = compare("base.jsonl", now, *options, "--json")
    json.loads(found.out)
    lines = [line for line in found.err.splitlines() if line.startswith("::")]
    assert len(lines) == bool(command)
    assert all(line.startswith(command) for line in lines)


# ---------------------------------------------------------------- GitHub's runner


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as the runner reads it."""
    found = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert found, line

    def unescape(text: str, codes: dict[str, str]) -> str:
        for code, letter in codes.items():
            text = text.replace(code, letter)
        return text.replace("%25", "%")

    data = {"%0D": "\r", "%0A": "\n"}
    properties = dict(part.split("=", 1) for part in found[2].split(","))
    named = {k: unescape(v, {**data, "%3A": ":", "%2C": ","}) for k, v in properties.items()}
    return found[1], named, unescape(found[3], data)


def checked(*checks: Check, strict: bool = False) -> Judged:
    return Judged(verdict=Verdict(checks=checks), baseline="a", now="b", strict=strict)


@given(
    st.sampled_from(NASTY),
    st.sampled_from(["+5% of %0A, %25: 100%", "a: b, c=d", "::error::"])
    | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"])),
)
def test_an_annotation_says_what_was_said_whatever_that_is(subject, reason):
    check = Check(name="latency", state="fail", limit="+5%", subject=subject, reason=reason)
    (line,) = annotate(checked(check))
    assert "\n" not in line
    assert "\r" not in line
    command, properties, message = read_command(line)
    assert command == "error"
    assert properties == {"title": "mint-deploy compare: latency fail"}
    assert message == words.plain(f"{subject}: {reason}" if subject else reason)


def test_ten_annotations_of_a_kind_are_shown_and_the_tenth_counts_the_rest():
    fails = [Check(name="latency", state="fail", limit="", reason=f"f{i}") for i in range(25)]
    open_ones = [Check(name="p99", state="inconclusive", limit="", reason="?") for _ in range(10)]
    lines = annotate(checked(*fails, *open_ones))
    found = [read_command(line) for line in lines]
    assert [command for command, _, _ in found] == ["error"] * 10 + ["warning"] * 10
    assert found[9][2] == "and 16 more: see the summary"
    strict = [read_command(line)[0] for line in annotate(checked(*open_ones, strict=True))]
    assert strict == ["error"] * 10


def test_the_summary_stays_under_its_cap_and_says_what_is_left_out(tmp_path):
    path = tmp_path / "summary.md"
    checks = [
        Check(name="latency", state="pass", limit="+5%", subject=f"net{i}" * 20, reason="x" * 200)
        for i in range(6000)
    ]
    path.write_text("x" * 300_000)
    assert append_summary(path, checked(*checks))
    text = path.read_text()
    assert 0.99 * SUMMARY_BYTES < len(text.encode()) <= SUMMARY_BYTES
    assert re.search(r"\d+ more checks are left out", text)
    assert not append_summary(path, checked(*checks))
    assert path.read_text() == text


def test_a_summary_that_has_no_room_left_is_a_warning(compare, monkeypatch, tmp_path):
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (SUMMARY_BYTES - 100))
    found = compare("base.jsonl", "same.jsonl", "--summary", str(path))
    assert found.code == 0
    assert "no room is left in the summary" in found.err


def test_a_summary_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot write the summary"):
        append_summary(tmp_path / "none" / "summary.md", checked())


def test_the_formats_that_help_names_are_those_that_there_are():
    said = judge.Format.__metadata__[0].help
    assert sorted(re.findall(r"[a-z][a-z-]+", said.replace(" or ", " "))) == known()


def test_machines_that_differ_are_told_with_the_field(compare):
    elsewhere = dataclasses.replace(MACHINE, governor="schedutil")
    write("other.jsonl", [made(around(2e6), machine=elsewhere)])
    found = compare("base.jsonl", "other.jsonl")
    assert found.code == 0
    assert "governor is 'performance' and 'schedutil'" in found.out
    assert found.out.splitlines()[-1] == "inconclusive"
