"""The report of a run: what it says is what the run's files say, and what is missing is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs as runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_page import parse

from mint_deploy import files, statistics
from mint_deploy.artifacts import Comparison
from mint_deploy.errors import MintDeployError, RunFolderError
from mint_deploy.predict import predict
from mint_deploy.report import collect, html, render
from mint_deploy.report.measured import ratio
from mint_deploy.target import load_target

SECTIONS = ("cost", "accuracy", "latency", "predicted", "widths", "groups", "frozen", "gate",
            "export", "machine")  # fmt: skip
NAMES = ("run.json", "target.toml", "plan.json", "cut.json", "accuracy.json", "deploy.json",
         "measurements.jsonl", "comparison.json", "predicted.json")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, rendered; tests that change it take a copy."""
    run = runs.whole(tmp_path_factory.mktemp("runs") / "whole")
    render(run)
    return run


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def page(run):
    return parse((run / "report.html").read_text(encoding="utf-8"))


def row(body, key):
    return next(r for r in body["headline"] if r["key"] == key)


def edit(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


# ---------------------------------------------------------------- what it says


def test_report_json_is_what_collect_returns(whole):
    stored = files.read_json(whole / "report.json", kind="Report")
    body = collect(whole)
    assert {k: stored[k] for k in body} == json.loads(json.dumps(body))
    assert all(body[name]["done"] for name in SECTIONS)


def test_the_headline_is_the_files_figures(whole):
    body = collect(whole)
    cut = json.loads((whole / "cut.json").read_text())
    deploy = json.loads((whole / "deploy.json").read_text())
    for key in ("macs", "params", "weight_bytes"):
        found = row(body, key)
        before, after = cut["cost_before"][key], cut["cost_after"][key]
        assert (found["before"], found["after"], found["ratio"]) == (before, after, after / before)
    sizes = [deploy[side]["bytes"] for side in ("dense", "slim")]
    assert [row(body, "onnx_bytes")[side] for side in ("before", "after")] == sizes
    assert row(body, "peak_memory")["before"] == 97_000_000 - 72_500_000
    test = row(body, "accuracy_test")
    assert (test["before"], test["after"]) == (0.9212, 0.9148)
    assert test["change"] == {"points": -0.64, "low": -1.07, "high": pytest.approx(-0.23)}


def test_every_face_prints_the_same_rounded_figures(whole):
    # 1 / 0.5783 = 1.729, of the interval 1 / 0.5918 = 1.690 to 1.770 = 1 / 0.5651
    text = page(whole).text.replace("\N{NO-BREAK SPACE}", " ")
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    for said in (text, markdown):
        for figure in ("1.73×", "1.69 to 1.77", "92.1 %", "91.5 %", "91.6 to 92.6", "−0.6 points",
                       "−1.1 to −0.2", "853 k", "437 k", "0.513×", "3.45 MB", "1.78 MB", "24.5 MB",
                       "8.6e-13", "3.1e-7", "25 of 26"):  # fmt: skip
            assert figure in said, figure


def test_latencies_are_those_of_the_raw_samples(whole):
    measured = runs.timed("dense", 3.412, calls=180)
    samples = [ns for restart in measured.restarts_ns for ns in restart]
    run = collect(whole)["latency"]["runs"][0]
    assert run["median_ns"]["value"] == np.median(samples)
    assert run["samples"] == 900
    for p in (90, 95, 99):
        figure = statistics.percentile(samples, p)
        assert run["percentiles"][f"p{p}"]["value"] == figure.value
        assert run["percentiles"][f"p{p}"]["upper"] == figure.upper
    assert [b["median_ns"] for b in run["restarts"]] == [
        np.median(restart) for restart in measured.restarts_ns
    ]
    for box, restart in zip(run["restarts"], measured.restarts_ns, strict=True):
        inside = [v for v in restart if box["low_ns"] <= v <= box["high_ns"]]
        assert len(inside) + box["below"] + box["above"] == len(restart)
        assert box["low_ns"] <= box["q1_ns"] <= box["median_ns"] <= box["q3_ns"] <= box["high_ns"]


def test_the_ratio_does_not_depend_on_which_came_first():
    there = Comparison(
        a="dense", b="slim", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5
    )
    back = replace(there, a="slim", b="dense", ratio=2.0, low=1 / 0.6, high=1 / 0.4)
    assert ratio(there) == pytest.approx(ratio(back))
    assert ratio(there)["seen"] == "faster"
    assert ratio(replace(there, ratio=1.2, low=1.1, high=1.3))["seen"] == "slower"
    assert ratio(replace(there, ratio=0.9, low=0.7, high=1.1))["seen"] == "no difference seen"
    assert ratio(replace(there, a="other")) is None


def test_a_slower_network_is_called_slower(copy):
    edit(
        copy / "comparison.json",
        lambda b: b["comparisons"][0].update(ratio=1.31, low=1.25, high=1.37),
    )
    body = render(copy)
    assert "SLOWER" in body["verdict"]
    assert "0.76×" in body["verdict"]  # 1 / 1.31


def test_steps_are_shown_where_all_were_judged_and_the_result_on_test(whole):
    accuracy = collect(whole)["accuracy"]
    assert (accuracy["leads"], accuracy["steps_part"], accuracy["final"]) == (
        "test", "validation", "recover",
    )  # fmt: skip
    assert accuracy["against_control"] == pytest.approx(100 * (0.9148 - 0.9221))
    table = page(whole).all("table", class_="steps")[0]
    rows = {r.one("th").text: [c.text for c in r.all("td")] for r in table.all("tr")[1:-1]}
    assert list(rows) == [
        "Dense network", "Right after the cut", "After repair", "After recovery",
        "Dense + the same recovery",
    ]  # fmt: skip
    # picture, validation, change, flipped, test
    assert rows["Right after the cut"][1:] == [
        "40.7 % 39.4 to 42.1", "−51.2 −51.6 to −50.8", "2,768", "–",
    ]  # fmt: skip
    assert rows["After recovery"][4] == "91.5 % 90.9 to 92.0"


def test_layers_and_groups_are_all_there(whole):
    body, found = collect(whole), page(whole)
    cut = json.loads((whole / "cut.json").read_text())
    layers = body["widths"]["layers"]
    assert [(x["name"], x["before"], x["after"]) for x in layers] == [
        (x["name"], x["before"], x["after"]) for x in cut["layers"]
    ]
    assert sum(x["share_after"] for x in layers) == pytest.approx(1)
    for table in ("Every layer", "Gate results", "Pruning groups"):
        region = next(
            r for r in found.all("div", role="region") if r.attributes["aria-label"] == table
        )
        names = [n.text for n in region.all("th") if n.attributes.get("scope") == "row"]
        wanted = [x["name"] for x in layers] if table == "Every layer" else list(cut["groups"])
        assert names == wanted
    for name, reason in runs.FROZEN.items():
        assert name in found.text
        assert reason in found.text


def test_gate_counts_what_was_cut_and_doubts_what_was_not_proven(whole):
    body = collect(whole)
    gate = body["gate"]
    states = [g["status"] for g in gate["groups"]]
    assert (gate["proven"], gate["whole"]) == (states.count("proven"), states.count("whole"))
    assert gate["total"] == gate["proven"] + 1
    rolled = [d for d in body["doubts"] if "rolled back" in d["text"]]
    assert len(rolled) == 1
    assert "a sabotaged cut was not noticed" in rolled[0]["text"]
    assert not any("whole" in d["text"] for d in body["doubts"])


# ---------------------------------------------------------------- predicted, not measured


def test_every_figure_for_a_board_is_called_predicted(whole):
    board = page(whole).one(id="board").parent
    assert "predicted, not measured" in board.one("h2").text
    heads = [h.text for h in board.all("th") if h.attributes.get("scope") == "col"]
    assert heads == ["Figure", "Board: predicted, not measured", "This machine: measured"]
    first = [c.text for c in board.all("tr")[1].all("td")]
    assert first == ["0.71× 0.55 to 0.90", "0.578× 0.565 to 0.592"]
    assert "no model of this board's power" in board.text
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    assert "predicted, not measured | this machine: measured" in markdown
    assert collect(whole)["predicted"]["origin"] == "predicted, not measured"


def test_a_prediction_of_ours_is_shown_with_the_ratio_first(copy):
    layers = [{"name": "a", "macs": 10**9, "weight_elements": 10**6, "activation_elements": 10**6}]
    half = [{**layers[0], "macs": 5 * 10**8}]
    body = predict(load_target("jetson"), dense=layers, slim=half)
    files.write_json(copy / "predicted.json", body, kind="Prediction")
    found = render(copy)["predicted"]
    assert [f["key"] for f in found["figures"]] == [
        "latency_ratio", "dense_latency_ms", "slim_latency_ms",
    ]  # fmt: skip
    assert found["figures"][1]["measured"]["value"] == pytest.approx(3.46, abs=0.01)
    board = page(copy).one(id="board").parent
    assert "Jetson Orin Nano 8 GB" in board.one("h2").text.replace("\N{NO-BREAK SPACE}", " ")
    for source in body["sources"].values():
        assert source in board.text


# ---------------------------------------------------------------- what is missing


def test_a_missing_sensor_says_why_on_every_face(whole):
    energy = "no energy counter: /sys/class/powercap does not exist"
    governor = "no cpufreq in /sys (usual in a virtual machine)"
    body = collect(whole)
    for run in body["latency"]["runs"]:
        assert run["energy_mj"] == {"value": None, "reason": energy}
    for said in (page(whole).text, (whole / "report.md").read_text(encoding="utf-8")):
        assert energy in said
        assert governor in said
        for reason in runs.MACHINE.details["nulls"].values():
            assert reason in said


def test_too_few_samples_leave_a_percentile_empty_with_the_reason(tmp_path):
    run = runs.small(tmp_path / "small")
    body = render(run)
    p99 = body["latency"]["runs"][0]["percentiles"]["p99"]
    assert p99["value"] is None
    assert "662" in p99["reason"]
    assert p99["reason"] in page(run).text
    assert p99["reason"] in (run / "report.md").read_text(encoding="utf-8")


def test_memory_without_a_figure_says_why(copy):
    found = runs.timed("dense", 3.0), runs.timed("slim", 2.0)
    (copy / "measurements.jsonl").unlink()
    why = "measured inside this process; peak memory needs a fresh one"
    runs.append(
        copy, [replace(m, peak_rss_bytes=None, nulls={"peak_rss_bytes": why}) for m in found]
    )
    body = render(copy)
    assert row(body, "peak_memory")["reason"] == why
    card = next(c for c in page(copy).all("li", class_="card") if c.text.startswith("Peak memory"))
    assert why in card.text
    assert body["latency"]["runs"][0]["energy_mj"]["reason"]  # says that nothing was said


def test_a_run_on_its_way_says_what_is_not_done(tmp_path):
    run = runs.begun(tmp_path / "begun")
    body = render(run)
    assert body["status"] == {"state": "unfinished", "text": "not finished: cut is next"}
    assert [name for name in SECTIONS if not body[name]["done"]] == [
        "latency", "predicted", "widths", "gate", "export", "machine",
    ]  # fmt: skip
    assert body["cost"]["origin"] == "planned"
    assert body["next"][0]["command"] == f"mint-deploy cut {run}"
    text = page(run).text
    assert text.count("Not done yet") == 5
    assert "Latency – not done yet" in text
    assert {c["slim"] for c in body["accuracy"]["classes"]} == {None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["absent", "empty", "cut short", "of another kind"])
def test_one_bad_file_costs_its_own_section_only(copy, name, how):
    path = copy / name
    text = path.read_text(encoding="utf-8")
    if how == "absent":
        path.unlink()
    else:
        bad = {"empty": "", "cut short": text[: len(text) // 2], "of another kind": '{"kind": "X"}'}
        path.write_text(bad[how])
    body = render(copy)
    page(copy)
    if how != "absent" and name.endswith(".json") and name != "run.json":
        told = [s["note"] for s in body.values() if isinstance(s, dict) and s.get("damaged")]
        assert told
        assert all(name in note for note in told)
        assert any(name in doubt["text"] for doubt in body["doubts"])
    others = [s for s in SECTIONS if body[s]["done"]]
    assert len(others) >= 5


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.sampled_from(NAMES), max_size=len(NAMES) - 1))
def test_any_files_may_be_absent(whole, tmp_path, gone):
    run = tmp_path / "some"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    for name in gone:
        (run / name).unlink()
    body = render(run)
    page(run)
    assert body["status"]["text"]
    assert (run / "report.md").stat().st_size < 64_000


def test_lines_that_a_killed_bench_left_are_counted(copy):
    with (copy / "measurements.jsonl").open("a") as stream:
        stream.write('{"kind": "Measurement", "task": {"la')
    body = collect(copy)
    assert len(body["latency"]["runs"]) == 4
    assert any("1 lines of measurements.jsonl" in d["text"] for d in body["doubts"])


def test_a_folder_without_a_run_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not a run folder"):
        render(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunFolderError, match="no run folder"):
        collect(tmp_path / "nowhere")
    assert issubclass(RunFolderError, MintDeployError)


# ---------------------------------------------------------------- promise, status, advice


@pytest.mark.parametrize(
    ("kept", "state", "words"),
    [
        (True, "kept", "promise kept"),
        (False, "broken", "promise broken"),
        (None, "inconclusive", "promise undecided"),
    ],
)
def test_the_promise_is_the_status(copy, kept, state, words):
    edit(copy / "accuracy.json", lambda b: b["promise"].update(kept=kept, text="what was judged"))
    body = render(copy)
    assert body["status"] == {"state": state, "text": words}
    found = page(copy)
    assert found.one("span", class_="badge").text == words
    assert "what was judged" in found.one("p", class_="promise").text
    assert ("--epochs" in json.dumps(body["next"])) == (kept is False)


def test_without_labels_it_is_agreement_and_never_accuracy(tmp_path):
    run = runs.small(tmp_path / "small")
    body = render(run)
    assert body["status"]["state"] == "done"
    assert "Agreement with dense on the test part: 100.0 % before, 97.2 % after" in body["verdict"]
    labels = [c.text for c in page(run).all("span", class_="label")]
    assert "Agreement with dense, test" in labels
    assert not any(label.startswith("Accuracy") for label in labels)
    assert body["run"]["demo"]


def test_commands_survive_a_shell(tmp_path):
    run = runs.begun(tmp_path / "my run; rm -rf x")
    assert collect(run)["next"][0]["command"] == f"mint-deploy cut '{run}'"


# ---------------------------------------------------------------- writing


def test_a_failing_page_leaves_the_old_report_whole(copy, monkeypatch):
    before = {p.name: p.read_bytes() for p in copy.glob("report.*")}

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(html, "page", fail)
    with pytest.raises(OSError, match="no space"):
        render(copy)
    assert {p.name: p.read_bytes() for p in copy.glob("report.*")} == before
    assert not list(copy.glob(".*.part"))


def test_equal_folders_give_equal_reports(whole):
    before = {p.name: p.read_bytes() for p in whole.glob("report.*")}
    render(whole)
    assert {p.name: p.read_bytes() for p in whole.glob("report.*")} == before


def test_a_body_at_hand_is_used(copy):
    body = collect(copy)
    body["title"] = "another title"
    render(copy, body)
    assert "another title" in page(copy).one("head").one("title").text
