"""Measurements as files: whole or named, old ones read, every damage told."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verdicts import around, made, measurements, of

from mint_deploy import bench, files
from mint_deploy.artifacts import SCHEMA, Comparison
from mint_deploy.compare import compare
from mint_deploy.errors import DataError, MintDeployError
from mint_deploy.measurement_file import read, save, write

GOLDEN = Path(__file__).parent / "golden" / "schema1"
SOME = [of(label="dense"), of(label="slim"), of(label="slim", batch=8)]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "base.jsonl"
    write(path, SOME)
    return path


# ---------------------------------------------------------------- there and back


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(measurements, min_size=1, max_size=3))
def test_any_measurement_comes_back(tmp_path, found):
    path = tmp_path / "any.jsonl"
    write(path, found)
    assert read(path) == found


def test_a_run_folder_has_measurements_and_comparisons(tmp_path):
    c = Comparison(a="a", b="b", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5)
    save(tmp_path, SOME, [c])
    assert read(tmp_path) == SOME
    body = files.read_json(tmp_path / "comparison.json", kind="Comparisons")
    assert [files.decode(Comparison, found) for found in body["comparisons"]] == [c]
    assert len((tmp_path / "measurements.jsonl").read_text().splitlines()) == len(SOME)


def test_the_harness_reads_and_writes_the_same_files(tmp_path):
    bench.save(tmp_path, SOME)
    assert read(tmp_path) == SOME
    write(tmp_path / "base.jsonl", SOME)
    assert bench.read(tmp_path / "base.jsonl") == SOME


def test_blank_lines_carriage_returns_and_a_byte_order_mark_do_no_harm(stored):
    text = stored.read_text()
    stored.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode())
    assert read(stored) == SOME
    stored.write_text(text.rstrip("\n"))
    assert read(stored) == SOME


def test_a_separator_of_lines_inside_of_a_name_is_no_line_end(stored):
    """Another program may write JSON without escapes."""
    lines = [json.loads(line) for line in stored.read_text().splitlines()]
    lines[0]["task"]["label"] = "a\u2028b\x85c"
    stored.write_text("\n".join(json.dumps(d, ensure_ascii=False) for d in lines) + "\n", "utf-8")
    assert read(stored)[0].task.label == "a\u2028b\x85c"


# ---------------------------------------------------------------- old files


def test_files_of_schema_1_are_read():
    dense, slim = read(GOLDEN)
    assert (dense.task.label, slim.task.label) == ("dense", "slim")
    assert len(slim.restarts_ns) == 5
    assert slim.restarts_ns[0][:3] == (1196902, 1209126, 1195925)
    assert (slim.task.streams, slim.gpu_bytes, slim.layers, slim.states) == (1, None, (), ())
    assert dict(slim.figures) == {}
    assert slim.nulls == {"energy_mj": "no energy counter"}
    assert slim.peak_rss_bytes == 62 << 20


def test_files_of_schema_1_are_judged():
    dense, slim = read(GOLDEN)
    (found,) = files.read_json(GOLDEN / "comparison.json", kind="Comparisons")["comparisons"]
    (check,) = compare(dense, slim, {"latency": "-40%"}).checks
    assert check.now / check.baseline == pytest.approx(found["ratio"], rel=1e-12)
    assert check.low / check.baseline == pytest.approx(found["low"], rel=1e-12)
    with pytest.raises(MintDeployError, match="without its size"):
        compare(dense, slim, {"size": "+0%"})


def test_an_old_file_written_anew_is_of_this_schema(tmp_path):
    found = read(GOLDEN)
    write(tmp_path / "new.jsonl", found)
    assert read(tmp_path / "new.jsonl") == found
    heads = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert {head["schema"] for head in heads} == {SCHEMA}


# ---------------------------------------------------------------- damage


def test_what_is_not_there_says_how_to_measure(tmp_path):
    for place in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match="measure first: mint-deploy bench"):
            read(place)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="holds no measurement; measure first"):
        read(empty)


def test_a_model_given_for_a_measurement_is_named(tmp_path):
    model = tmp_path / "net.onnx"
    model.write_bytes(b"\x08\x08\x12\x07pytorch\xff\xfe\x00")
    with pytest.raises(DataError, match=r"not text .*; expected a file that `mint-deploy bench"):
        read(model)


def test_every_cut_of_the_last_line_is_named_with_what_can_be_done(stored):
    """A copy that ends anywhere within the last line."""
    text = stored.read_text()
    start = text.rstrip("\n").rindex("\n") + 1
    rng = random.Random(0)
    for end in [
        start + 1,
        len(text) - 2,
        *(rng.randrange(start + 1, len(text) - 1) for _ in range(25)),
    ]:
        stored.write_text(text[:end])
        with pytest.raises(DataError) as caught:
            read(stored)
        said = str(caught.value)
        assert f"{stored}, line 3 is damaged: the file ends in the middle of it" in said
        assert "the 2 before it can be read" in said
    stored.write_text(text[:start])
    assert read(stored) == SOME[:2]


def test_a_first_line_that_is_cut_off_leaves_nothing(stored):
    stored.write_text(stored.read_text()[:50])
    with pytest.raises(DataError, match="line 1 is damaged: the file ends") as caught:
        read(stored)
    assert "before it" not in str(caught.value)


def test_a_line_in_the_middle_that_is_damaged_is_named(stored):
    lines = stored.read_text().split("\n")
    lines[1] = lines[1][:-30]
    stored.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 2 is damaged or not JSON .*; measure anew"):
        read(stored)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "Report"}, "line 1 is not a measurement but 'Report'"),
        ({"kind": None}, "not a measurement but None"),
        ({"schema": SCHEMA + 1}, f"schema {SCHEMA + 1}, this version reads up to {SCHEMA}; update"),
        ({"schema": 0}, "schema 0, expected a whole number from 1"),
        ({"schema": True}, "schema True"),
        ({"schema": "2"}, "schema '2'"),
        ({"restarts_ns": [[5, -3]]}, "restarts_ns holds -3, and no time is negative"),
        ({"load_ns": [-1]}, "load_ns holds -1"),
        ({"blocks": [[5, 5]]}, "blocks[0] speaks of 10 latencies, restarts_ns[0] holds 9"),
        ({"blocks": [[9], [10, -1]]}, "blocks[1] speaks of 9 latencies"),
        ({"restarts_ns": [[1.5]]}, "restarts_ns[0][0]: expected int, found 1.5"),
        ({"restarts_ns": {}}, "restarts_ns: expected a list"),
        ({"converged": "yes"}, "converged: expected bool"),
        ({"figures": {"macs": None}}, "figures.macs: expected float, found None"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"task": {"label": "x"}}, "task: key 'sha256' is missing"),
        ({"task": []}, "task: expected an object"),
    ],
)
def test_a_key_that_is_wrong_is_named_with_its_line(stored, change, said):
    lines = stored.read_text().split("\n")
    lines[0] = json.dumps({**json.loads(lines[0]), **change})
    stored.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read(stored)
    assert said in str(caught.value)
    assert f"{stored}, line 1" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("threads", -1), ("streams", 0)])
def test_a_task_that_cannot_be_is_refused(stored, name, value):
    bad = dataclasses.replace(SOME[0], task=dataclasses.replace(SOME[0].task, **{name: value}))
    write(stored, [bad])
    with pytest.raises(DataError, match=rf"task\.{name} is {value}, expected 1 or more"):
        read(stored)


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '"text"', "[" * 100_000, "{,}", "NaN"])
def test_what_is_json_and_no_measurement(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="line 1"):
        read(path)


def test_numbers_that_json_does_not_have_are_refused(stored):
    line = json.loads(stored.read_text().split("\n")[0])
    line["energy_mj"] = float("nan")
    stored.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="NaN is no number of JSON"):
        read(stored)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_byte_is_a_traceback(stored, data):
    """Read, or refused by name: never another exception."""
    raw = (GOLDEN / "measurements.jsonl").read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255))
    stored.write_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :])
    try:
        said = str(read(stored))
    except DataError as error:
        said = str(error)
        where = str(stored)
    else:
        where = "Measurement"
    assert where in said


# ---------------------------------------------------------------- writing


KILLED = """
import os, signal, sys
from pathlib import Path
from mint_deploy import measurement_file
folder, when = Path(sys.argv[1]), int(sys.argv[2])
old = measurement_file.read(folder / "old.jsonl")
encode, count = measurement_file.files.encode, 0
def deadly(value):
    global count
    count += 1
    if count == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(value)
measurement_file.files.encode = deadly
measurement_file.write(folder / "base.jsonl", old * 3)
"""


@pytest.mark.parametrize("when", [1, 5])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path, when):
    shutil.copy(GOLDEN / "measurements.jsonl", tmp_path / "old.jsonl")
    write(tmp_path / "base.jsonl", SOME)
    before = (tmp_path / "base.jsonl").read_bytes()
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(when)], check=False,
        env={**os.environ, "PYTHONPATH": str(Path(bench.__file__).parents[1])},
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "base.jsonl").read_bytes() == before


def test_a_reader_that_has_the_file_open_keeps_the_old_one_whole(stored):
    before = stored.read_text()
    with stored.open() as reader:
        write(stored, SOME[:1])
        assert reader.read() == before
    assert read(stored) == SOME[:1]


def test_a_measurement_that_cannot_be_written_leaves_the_old_file(stored):
    before = stored.read_bytes()
    unwritable = dataclasses.replace(made(around(1e6)), doubts=(object(),))
    with pytest.raises(TypeError):
        write(stored, [SOME[0], unwritable])
    assert stored.read_bytes() == before
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]
