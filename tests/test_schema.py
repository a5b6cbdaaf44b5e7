"""The published JSON Schemas: they hold what is written, and not what is damaged; they follow the code."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from verdicts import SOME_LIMITS, measurements, of, turns

from mint_deploy import artifacts, files
from mint_deploy.artifacts import SCHEMA, Comparison, Measurement
from mint_deploy.compare import compare
from mint_deploy.errors import UnknownName
from mint_deploy.limits import GAUGES
from mint_deploy.measurement_file import save
from mint_deploy.report.formats import SCHEMAS, Judged, render, schema

GOLDEN = Path(__file__).parent / "golden" / "schema1"
NAMES = ("measurement", "comparisons", "verdict")
CHECKED = {name: Draft202012Validator(schema(name)) for name in NAMES}


def wrong(name, document) -> list[str]:
    return [error.message for error in CHECKED[name].iter_errors(document)]


def test_each_is_a_schema_of_2020_12_with_a_name_and_a_version():
    assert sorted(p.stem for p in SCHEMAS.glob("*.json")) == sorted(NAMES)
    for name in NAMES:
        found = schema(name)
        Draft202012Validator.check_schema(found)
        assert found["$schema"].endswith("2020-12/schema")
        assert found["$id"] == f"urn:mint-deploy:schema:{name}:{SCHEMA}"
    with pytest.raises(UnknownName, match="did you mean 'verdict'"):
        schema("verdicts")


# ---------------------------------------------------------------- they hold what is written


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(measurements)
def test_any_measurement_that_is_written_is_valid(m):
    document = {"kind": "Measurement", "schema": SCHEMA, "written_by": "x", **files.encode(m)}
    assert wrong("measurement", json.loads(json.dumps(document))) == []


def test_files_that_were_written_are_valid(tmp_path):
    c = Comparison(a="a", b="b", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5)
    save(tmp_path, [of(), of(batch=8)], [c])
    for folder in (tmp_path, GOLDEN):  # today's, and those of schema 1
        for line in (folder / "measurements.jsonl").read_text().splitlines():
            assert wrong("measurement", json.loads(line)) == []
        assert wrong("comparisons", json.loads((folder / "comparison.json").read_text())) == []


@pytest.mark.parametrize("strict", [False, True])
def test_verdicts_are_valid_whatever_they_say(strict):
    sides = [
        (of(), of()),
        (of(), of(2e6)),
        turns([1e6, 1.2e6, 0.9e6], [2e6, 2.4e6, 1.8e6]),
        ([of(label="a"), of(label="b")], [of(label="a"), of(label="c")]),
        (of(), dataclasses.replace(of(), peak_rss_bytes=None, restarts_ns=())),
    ]
    for a, b in sides:
        verdict = compare(a, b, SOME_LIMITS)
        text = render("json", Judged(verdict=verdict, baseline="a", now="b", strict=strict))
        assert wrong("verdict", json.loads(text)) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(measurements, measurements)
def test_a_verdict_of_any_two_measurements_is_valid(a, b):
    b = dataclasses.replace(b, task=a.task)
    verdict = compare(a, b, {"latency": "+5%", "p99": "+5%", "memory": "+5%", "energy": "+5%"})
    text = render("json", Judged(verdict=verdict, baseline="a", now="b"))
    assert wrong("verdict", json.loads(text)) == []


# ---------------------------------------------------------------- and not what is damaged


def _some() -> dict[str, typing.Any]:
    m = dataclasses.replace(
        of(), layers=(artifacts.LayerTime(name="n", op="Conv", ns=5.0, calls=3),),
        states=(artifacts.MachineState(steal=0.1),),
    )  # fmt: skip
    c = Comparison(a="a", b="b", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5)
    verdict = render("json", Judged(verdict=compare(of(), of()), baseline="a", now="b"))
    return {
        "measurement": {"kind": "Measurement", "schema": SCHEMA, **files.encode(m)},
        "comparisons": {"kind": "Comparisons", "schema": SCHEMA, "comparisons": [files.encode(c)]},
        "verdict": json.loads(verdict),
    }


def _places(document, path=()):
    """Every object in a document."""
    if isinstance(document, dict):
        yield path, document
        for key, value in document.items():
            yield from _places(value, (*path, key))
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from _places(value, (*path, i))


#: objects whose keys are names that the user or the machine chose
OPEN = {"versions", "details", "figures", "nulls", "machine", "task"}


@pytest.mark.parametrize("name", NAMES)
def test_a_key_too_many_is_noticed_everywhere(name):
    document = _some()[name]
    assert wrong(name, document) == []
    tried = 0
    for path, _ in _places(document):
        if name == "measurement" and path and path[-1] in OPEN - {"machine", "task"}:
            continue
        if name == "verdict" and {"machine", "task"} & set(path):
            continue
        bad = copy.deepcopy(document)
        spot = bad
        for step in path:
            spot = spot[step]
        spot["another"] = 1
        assert wrong(name, bad), path
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_required_key_too_few_and_a_wrong_type_are_noticed(name):
    document, rules = _some()[name], schema(name)
    for key in rules["required"]:
        assert wrong(name, {k: v for k, v in document.items() if k != key}), key
        assert wrong(name, {**document, key: {"not": "this"}}), key
    assert wrong(name, {**document, "schema": SCHEMA + 1})
    assert wrong(name, {**document, "kind": "Other"})


def test_negative_times_and_states_that_are_none_are_noticed():
    some = _some()
    assert wrong("measurement", {**some["measurement"], "restarts_ns": [[1, -1]]})
    assert wrong("measurement", {**some["measurement"], "restarts_ns": [[1.5]]})
    assert wrong("verdict", {**some["verdict"], "state": "maybe"})
    assert wrong("verdict", {**some["verdict"], "exit_code": 2})


# ---------------------------------------------------------------- they follow the code


def _fields(value) -> dict[str, typing.Any]:
    return {f.name: f for f in dataclasses.fields(value)}


@pytest.mark.parametrize(
    "value", ["TaskSpec", "Machine", "MachineState", "LayerTime", "TensorSpec", "Measurement"]
)
def test_the_measurement_schema_has_the_fields_of_the_values(value):
    """A field that is added to a value must be added here, with its words."""
    rules = schema("measurement")
    part = rules if value == "Measurement" else rules["$defs"][value]
    head = {"kind", "schema", "written_by"} if value == "Measurement" else set()
    cls = getattr(artifacts, value)
    hints, fields = typing.get_type_hints(cls), _fields(cls)
    assert set(part["properties"]) - head == set(fields)
    demanded = {
        n for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }  # fmt: skip
    assert set(part["required"]) - head == demanded
    for name, hint in hints.items():
        rule = part["properties"][name]
        nullable = typing.get_origin(hint) in (typing.Union, types.UnionType)
        assert ("null" in rule.get("type", ())) == nullable, name
        if "$ref" not in rule and name != "hostname":
            assert rule["description"], name


def test_the_verdict_schema_names_every_figure_and_the_fields_of_a_check():
    rules = schema("verdict")
    assert set(rules["$defs"]["Side"]["properties"]["figures"]["properties"]) == {
        *GAUGES, "import memory",
    }  # fmt: skip
    (check,) = compare(of(), of()).checks
    assert set(rules["$defs"]["Check"]["properties"]) == set(_fields(check))
    assert set(schema("comparisons")["$defs"]["Comparison"]["properties"]) == set(
        _fields(Comparison)
    )


def test_the_version_of_the_schema_is_the_version_of_the_files():
    assert schema("verdict")["properties"]["schema"]["const"] == SCHEMA
    for name in ("measurement", "comparisons"):
        assert schema(name)["properties"]["schema"]["enum"] == list(range(1, SCHEMA + 1))
    assert schema("measurement")["properties"]["kind"]["const"] == Measurement.__name__
