"""The report's section on lower precision: figures, layers in float32, Markdown, and the page's part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jinja2
import pytest
from report_runs import timed

from mint_deploy import files, measurement_file, stopping
from mint_deploy.artifacts import Accuracy
from mint_deploy.errors import DataError
from mint_deploy.report import html
from mint_deploy.report import markdown as whole
from mint_deploy.report import precision as part
from mint_deploy.report.body import collect
from mint_deploy.report.folder import Folder
from mint_deploy.values.precision import FloatLayer, Quantized


def accuracy(top1: float, **more: float) -> Accuracy:
    return Accuracy(
        measure="top1", part="held out", top1=top1, low=0.86, high=0.89, samples=2000, **more
    )


MADE = Quantized(
    path="model.int8.onnx",
    precision="int8",
    scheme="u8s8-reduced",
    sha256="a" * 64,
    bytes=975_317,
    source_sha256="b" * 64,
    source_bytes=3_430_585,
    calibration="minmax",
    samples=512,
    layers=83,
    float_layers=(
        FloatLayer(
            name="a|b<c>/Conv", operator="Conv", reason="alone it leaves 9.1 dB", snr_db=9.1
        ),
    ),
    float_macs=0.021,
    before=accuracy(0.8762),
    after=accuracy(0.8731, drop=0.31, drop_low=-0.12, drop_high=0.74),
    max_drop=0.5,
    kept=True,
    verdict="kept: top1 dropped by 0.31 points",
    snr_db={"output": 30.19, "aux": 24.04},
)


def folder(tmp_path: Path, *made: Quantized) -> Folder:
    networks = dict(zip(("dense", "slim"), made, strict=False))
    body = {
        "precision": "int8",
        "max_drop": 0.5,
        "kept": True,
        "networks": {k: {"quantized": v, "exported": None} for k, v in networks.items()},
    }
    files.write_json(tmp_path / "precision.json", body, kind="Precision")
    (tmp_path / "run.json").write_text("{}")
    return Folder(tmp_path)


def test_the_section_says_the_change_in_points(tmp_path: Path) -> None:
    found = part.precision(folder(tmp_path, MADE, MADE))
    assert [n["network"] for n in found["networks"]] == ["dense", "slim"]
    assert found["networks"][1]["change"] == {"points": -0.31, "low": -0.74, "high": 0.12}
    assert found["networks"][0]["snr_db"] == {"output": 30.19, "aux": 24.04}


def test_no_file_no_section(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert part.precision(Folder(tmp_path)) is None
    (tmp_path / "deploy.json").write_text("{}")
    assert part.precision(Folder(tmp_path))["networks"] == [], "every file is float32"
    assert part.rows(part.precision(Folder(tmp_path))) == []


def test_a_damaged_file_names_itself(tmp_path: Path) -> None:
    found = folder(tmp_path, MADE)
    text = (tmp_path / "precision.json").read_text().replace('"scheme"', '"shceme"')
    (tmp_path / "precision.json").write_text(text)
    with pytest.raises(DataError, match=r"precision\.json: dense"):
        part.precision(found)


def test_rows_are_printed_figures(tmp_path: Path) -> None:
    row = part.rows(part.precision(folder(tmp_path, MADE)))[0]
    assert row["label"] == "dense, INT8"
    assert (row["before"], row["after"]) == ("87.6 %", "87.3 %")
    assert row["change"].endswith("0.31 points")
    assert row["span"].endswith("0.74 to 0.12")
    assert row["snr"] == "24.0 dB", "the worst output is told"
    assert row["size"] == "3.43 MB to 975 kB"
    assert row["floats"] == "1 of 83, 2 % of the multiply-adds"


def test_the_time_is_the_ratio_of_what_was_measured_in_turns(tmp_path: Path) -> None:
    runs = [timed("dense", 2.0), timed("slim", 1.0), timed("slim int8", 0.5)]
    measurement_file.write(tmp_path / "measurements.jsonl", runs)
    section = part.precision(folder(tmp_path, MADE, MADE))
    dense, slim = (n["time"] for n in section["networks"])
    assert dense is None, "its int8 file was not measured"
    own = stopping.between(runs[1], runs[2])
    assert (slim["ratio"], slim["low"], slim["high"]) == (own.ratio, own.low, own.high)
    assert slim["ratio"] == pytest.approx(0.5, rel=0.1)
    assert slim["runtime"] == "onnxruntime"
    assert [row["time"][:3] for row in part.rows(section)] == [
        "\N{EN DASH}",
        f"{slim['ratio']:.1f}",
    ]


def test_what_was_not_judged_has_dashes(tmp_path: Path) -> None:
    plain = dataclasses.replace(
        MADE, before=None, after=None, kept=None, verdict="", float_layers=(), float_macs=None
    )
    row = part.rows(part.precision(folder(tmp_path, plain)))[0]
    assert {row["before"], row["after"], row["change"]} == {"\N{EN DASH}"}
    assert row["floats"] == "0 of 83"
    assert row["time"] == "\N{EN DASH}"


def test_markdown_is_safe_and_bounded(tmp_path: Path) -> None:
    many = tuple(FloatLayer(name=f"l{i}", operator="Conv", reason="asked for") for i in range(30))
    section = part.precision(folder(tmp_path, MADE, dataclasses.replace(MADE, float_layers=many)))
    text = part.markdown(section, whole._say, whole._code)
    assert text.startswith("### Precision")
    assert "a\\|b<c>/Conv" in text, "a name from a stranger breaks no table"
    assert "- and 19 more" in text
    assert text.count("\n- ") + 1 <= 14
    assert "kept: top1 dropped by 0.31 points." in text
    assert part.markdown({"networks": []}, whole._say, whole._code) == ""


def test_the_template_prints_and_escapes(tmp_path: Path) -> None:
    section = part.precision(folder(tmp_path, MADE))
    templates = Path(part.__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = '{% from "parts.html.j2" import scroll with context %}{% include "precision.html.j2" %}'
    data = {"rows": part.rows(section), "floats": part.floats(section), "note": ""}
    page = environment.from_string(text).render(precision=data)
    assert "dense, INT8" in page
    assert "a|b&lt;c&gt;/Conv" in page
    assert environment.from_string(text).render(precision=None).strip() == ""


def test_the_report_of_a_run_has_the_section_or_says_what_is_wrong(tmp_path: Path) -> None:
    folder(tmp_path, MADE, MADE)
    body = collect(tmp_path)
    assert [n["network"] for n in body["precision"]["networks"]] == ["dense", "slim"]
    for text in (html.page(body), whole.text(body)):
        text = text.replace("\N{NO-BREAK SPACE}", " ").replace("&nbsp;", " ")
        assert "975 kB" in text
        assert "24.0 dB" in text
    damaged = (tmp_path / "precision.json").read_text().replace('"scheme"', '"shceme"')
    (tmp_path / "precision.json").write_text(damaged)
    page = html.page(collect(tmp_path))
    assert 'id="precision"' in page
    assert "precision.json: dense" in page
    (tmp_path / "precision.json").unlink()
    body = collect(tmp_path)
    assert 'id="precision"' not in html.page(body)
    assert "### Precision" not in whole.text(body)
