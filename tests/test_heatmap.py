"""The heat map and the scores in the report: cells, colours and marks are those of the values."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs as runs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from report_page import Node, parse

from mint_deploy import files
from mint_deploy.artifacts import (
    GroupImportance,
    Importance,
    Member,
    PlanGroup,
    PlanLayer,
    PruningPlan,
)
from mint_deploy.errors import DataError
from mint_deploy.report import charts, collect, render
from mint_deploy.report.heatmap import cells, heat_map
from mint_deploy.report.pixels import colours, png
from mint_deploy.scores_file import read_scores, write_scores
from mint_deploy.stages import stage_named

SVG = "{http://www.w3.org/2000/svg}"
RNG = np.random.default_rng(0)


def tree_of(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - what we drew ourselves


def levels_of(body: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["levels"]), dtype=np.uint8).reshape(body["cells"])


def values_of(body: dict[str, Any]) -> np.ndarray:
    """What the shown colours stand for; NaN where there is none."""
    levels = levels_of(body).astype(np.float64)
    shown = body["low"] + (body["high"] - body["low"]) * (levels - 1) / 254
    return np.where(levels > 0, shown, np.nan)


def decoded(href: str) -> Image.Image:
    head, _, data = href.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0 to 255 -> OKLab, by the matrices of its definition (not those of the code)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(lms) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


# ---------------------------------------------------------------- colours and the picture


def test_equal_steps_of_value_look_equal() -> None:
    steps = np.linalg.norm(np.diff(oklab(colours(16).astype(float)), axis=0), axis=1)
    assert steps.max() / steps.min() < 1.1
    fine = np.linalg.norm(np.diff(oklab(colours(32).astype(float)), axis=0), axis=1)
    assert fine.max() / fine.min() < 1.25  # what rounding to 8 bits leaves


def test_lightness_grows_all_along_and_reads_in_grey() -> None:
    lightness = oklab(colours().astype(float))[:, 0]
    assert (np.diff(lightness) > 0).mean() > 0.97
    assert lightness[0] < 0.27
    assert lightness[-1] > 0.92
    assert len({tuple(c) for c in colours()}) == 255


def test_no_colour_was_clipped_at_the_edge_of_srgb() -> None:
    """A clipped channel would bend the curve: lightness and hue stay those of its formula."""
    lab = oklab(colours(41).astype(float))
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    assert (np.diff(hue) < 0).all()
    assert (hue[0], hue[-1]) == pytest.approx((300, 100), abs=2)


@settings(max_examples=25, deadline=None)
@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_the_png_holds_the_levels(levels: np.ndarray) -> None:
    image = Image.open(io.BytesIO(png(levels)))
    image.load()
    assert image.size == (levels.shape[1], levels.shape[0])
    rgba = np.asarray(image.convert("RGBA"))
    assert (rgba[..., 3] == np.where(levels == 0, 0, 255)).all()
    shown = levels > 0
    assert (rgba[shown][:, :3] == colours()[levels[shown] - 1]).all()


# ---------------------------------------------------------------- cells


@settings(max_examples=60, deadline=None)
@given(
    npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 30), st.integers(1, 30)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_a_shown_colour_is_within_half_a_step_of_its_value(matrix: np.ndarray) -> None:
    body = cells(matrix)
    assert body["shape"] == body["cells"] == list(matrix.shape)
    assert (body["least"], body["greatest"]) == (matrix.min(), matrix.max())
    if body["high"] > body["low"]:
        step = (body["high"] - body["low"]) / 254
        assert np.abs(values_of(body) - matrix).max() <= 0.5001 * step + 1e-9 * abs(matrix).max()
    else:
        assert set(levels_of(body).reshape(-1)) == {128}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(0, 99))
def test_more_cells_than_fit_are_averaged(r: int, c: int, most: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).random((r, c))
    body = cells(matrix, most=most)
    assert body["cells"] == [min(r, most), min(c, most)]
    parts = [
        [np.arange(n) for n in (r, c)][axis]
        if n <= most
        else np.searchsorted(np.arange(most) * n // most, np.arange(n), side="right") - 1
        for axis, n in enumerate((r, c))
    ]
    total, count = np.zeros(body["cells"]), np.zeros(body["cells"])
    np.add.at(total, np.ix_(*parts), matrix)
    np.add.at(count, np.ix_(*parts), 1)
    expected = total / count
    assert body["least"] == pytest.approx(expected.min())
    assert body["greatest"] == pytest.approx(expected.max())
    if body["high"] > body["low"]:
        step = (body["high"] - body["low"]) / 254
        assert np.abs(values_of(body) - expected).max() <= 0.501 * step + 1e-12


def test_512_by_512_stays_small_and_says_so() -> None:
    svg = heat_map(RNG.random((512, 512)), title="conv9")
    assert len(svg) < 32_000
    assert "512 × 512, shown as 128 × 128 averages of 4 × 4" in svg
    tree = tree_of(svg)
    image = tree.find(f"{SVG}image")
    assert image is not None
    assert decoded(image.attrib["href"]).size == (128, 128)


def test_cells_without_a_value_stay_open_and_spoil_no_average() -> None:
    matrix = np.array([[1.0, np.nan], [np.inf, 3.0], [np.nan, np.nan], [np.nan, np.nan]])
    body = cells(matrix)
    assert body["missing"] == 6
    assert (levels_of(body) == 0).tolist() == (~np.isfinite(matrix)).tolist()
    halves = cells(matrix, most=2)
    assert halves["missing"] == 2
    assert (halves["least"], halves["greatest"]) == (1.0, 3.0)
    assert "6 cells without a value left open" in heat_map(matrix)
    nothing = heat_map(np.full((2, 2), np.nan))
    assert "4 cells without a value" in nothing


def test_colours_may_be_given_their_ends() -> None:
    body = cells([[0.0, 0.5, 2.0]], low=0.25, high=1.0)
    assert levels_of(body).tolist() == [[1, 86, 255]]
    svg = heat_map([[0.0, 0.5, 2.0]], low=0.25, high=1.0)
    assert "≤ 0.250" in svg
    assert "≥ 1.00" in svg
    assert "≤" not in heat_map([[0.0, 0.5, 2.0]])


def test_the_colour_bar_has_values_and_what_they_are() -> None:
    svg = heat_map([[0.0, 0.2], [0.1, 0.4]], value="dependency, nats")
    texts = [t.text for t in tree_of(svg).iter(f"{SVG}text")]
    assert texts[-4:] == ["0", "0.200", "0.400", "dependency, nats"]


@pytest.mark.parametrize(
    ("matrix", "more", "said"),
    [
        ([1.0, 2.0], {}, r"shape \(2,\), expected \[rows, columns\]"),
        (np.ones((0, 4)), {}, "something in it"),
        (np.ones((2, 2, 2)), {}, "is drawn of a matrix"),
        (np.ones((2, 3)), {"columns_gone": [True]}, "columns_gone has shape"),
        (np.ones((2, 3)), {"rows_gone": [True] * 3}, "each of 2"),
        (np.ones((2, 3)), {"most": 0}, "most=0"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        heat_map(matrix, **more)


# ---------------------------------------------------------------- the picture


def rects(svg: str, class_: str) -> list[dict[str, str]]:
    return [r.attrib for r in tree_of(svg).iter(f"{SVG}rect") if r.attrib["class"] == class_]


def test_a_file_of_its_own_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    svg = heat_map(RNG.random((8, 12)), title='a <b> & "c" \x1b[31m', rows="o", columns="i")
    tree = tree_of(svg)
    assert tree.tag == f"{SVG}svg"
    assert tree.find(f"{SVG}style") is not None
    title = tree.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert title.text.startswith('Heat map of a <b> & "c"')
    assert "8 o by 12 i" in title.text
    assert "\x1b" not in svg
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|url\(|@import", svg)
    assert "prefers-color-scheme: dark" in svg
    assert "@media print" in svg
    (tmp_path / "map.svg").write_text(svg, encoding="utf-8")


def test_what_leaves_is_marked_where_it_stands() -> None:
    svg = heat_map(
        RNG.random((4, 10)),
        columns_gone=[0, 1, 1, 0, 0, 0, 0, 0, 0, 1],
        rows_gone=[0.5, 0, 0, 0],
    )
    frame = rects(svg, "frame")[0]
    left, wide = float(frame["x"]), float(frame["width"])
    gone = rects(svg, "gone")
    across = [r for r in gone if r["height"] == "5"]
    assert [(float(r["x"]) - left) / wide for r in across] == pytest.approx([0.1, 0.9], abs=1e-3)
    assert [float(r["width"]) / wide for r in across] == pytest.approx([0.2, 0.1], abs=1e-3)
    down = [r for r in gone if r["width"] == "5"]
    assert [(r["y"], r["opacity"]) for r in down] == [(frame["y"], "0.5")]
    assert "30 % of the columns leave" in svg
    assert "leaves with the plan" in svg
    assert not rects(heat_map(RNG.random((4, 10))), "gone")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700))
def test_any_shape_has_axes_that_fit(r: int, c: int) -> None:
    tree = tree_of(heat_map(np.ones((r, c)), title="x"))
    _, _, width, height = map(float, tree.attrib["viewBox"].split())
    assert width == 360
    assert height < 460
    numbers = [t for t in tree.iter(f"{SVG}text") if (t.text or "").isdigit() and "x" in t.attrib]
    assert 2 <= len(numbers) <= 13
    for text in tree.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib.get("x", 0)) <= width
        assert 0 <= float(text.attrib.get("y", 0)) <= height


# ---------------------------------------------------------------- the report's section


def section(run: Path) -> Node:
    tree = parse((run / "report.html").read_text(encoding="utf-8"))
    return next(s for s in tree.all("section") if s.attributes.get("aria-labelledby") == "scores")


def side(tensor: str, dim: int, size: int, gone: Sequence[int], units: int = 0) -> PlanGroup:
    """A group whose units are runs of slices along one dimension of one weight."""
    units = units or size
    return PlanGroup(
        name=f"{tensor}.{dim}",
        size=units,
        keep=tuple(u for u in range(units) if u not in set(gone)),
        round_to=1,
        members=(
            Member(
                tensor=tensor,
                dim=dim,
                length=size,
                index=np.arange(size).reshape(units, -1),
                reads=dim == 1,
            ),
        ),
    )


def with_maps(run: Path, shapes: dict[str, tuple[int, int]], *more: PlanGroup) -> Path:
    """A finished run whose estimator made matrices; ``more`` are groups of its plan."""
    runs.whole(run)
    plan = files.read_value(run / "plan.json", PruningPlan)
    scores = runs.scores_of(plan)
    matrices = {w: RNG.random(shape) for w, shape in shapes.items()}
    write_scores(
        run / "scores.npz",
        replace(scores, estimator="gmi", comparable=False, dependency=matrices),
    )
    files.write_value(run / "plan.json", replace(plan, groups=(*plan.groups, *more)))
    return run


def test_the_section_says_what_the_scores_say(tmp_path: Path) -> None:
    run = runs.whole(tmp_path / "run")
    body = render(run)["scores"]
    plan = files.read_value(run / "plan.json", PruningPlan)
    scores = runs.scores_of(plan)
    found = section(run)
    text = re.sub(r"\s+", " ", found.text)
    assert "Ranked by mint (gaussian) on 1,000 images, seed 0." in text
    assert "they are in nats. All pictures share one log scale" in text
    names = [th.text for th in found.all("th") if th.attributes["scope"] == "row"]
    assert names == list(scores.groups)
    first = found.all("table")[0].all("tr")[1]
    cell = [td.text for td in first.all("td")]
    group = plan.groups[0]
    assert cell[1] == f"{group.size} → {len(group.keep)}"
    assert cell[-1] == "20 %"
    assert [g["kept"] for g in body["groups"]] == [len(g.keep) for g in plan.groups]
    assert len(found.all("details")) == 1  # 28 groups, 24 of them open
    assert not found.all("image")
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "### Scores" in markdown
    assert f"| `{group.name}` | {group.size} → {len(group.keep)} |" in markdown


def test_each_column_of_the_losses_stays_or_leaves(tmp_path: Path) -> None:
    run = runs.whole(tmp_path / "run")
    render(run)
    plan = files.read_value(run / "plan.json", PruningPlan)
    rows = section(run).all("table")[0].all("tr")[1:]
    for group, row in zip(plan.groups, rows, strict=False):
        drawn = row.one("svg")
        assert len(drawn.all("rect", class_="behind")) == len(group.removed)
        assert len(drawn.all("rect", class_="fill")) == len(group.keep)
        said = f"{len(group.removed)} leave, {len(group.keep)} stay"
        assert said in drawn.attributes["aria-label"]


def test_a_column_is_as_high_as_its_loss() -> None:
    svg = parse(f"<!DOCTYPE html>{charts.losses([0.0, 0.5, 1.0], [1, 0, 0.25], title='t')}")
    heights = [float(r.attributes["height"]) for r in svg.all("rect", class_="fill")]
    assert heights == [16, 24]
    assert [float(r.attributes["height"]) for r in svg.all("rect", class_="behind")] == [1.5, 8]
    plain = parse(f"<!DOCTYPE html>{charts.losses([0.5], None, title='t')}")
    assert not plain.all("rect", class_="behind")


def test_maps_of_the_first_layers_are_open_and_the_rest_one_click_away(tmp_path: Path) -> None:
    shapes = {f"layer{i}.conv.weight": (6, 4 + i) for i in range(5)}
    run = with_maps(tmp_path / "run", shapes)
    body = render(run)["scores"]
    found = section(run)
    maps = found.all("svg", class_="heatmap")
    assert [m.all("text", class_="name")[0].text for m in maps] == [
        f"layer{i}.conv" for i in range(5)
    ]
    folded = found.all("details")[-1]
    assert folded.one("summary").text == "3 more layers"
    assert len(folded.all("svg", class_="heatmap")) == 3
    assert "dependency (gmi)" in found.text
    assert [m["shape"] for m in body["maps"]] == [[6, 4 + i] for i in range(5)]
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count(".heatmap {") == 3, "one style for all, in light, dark and print"
    for image in found.all("image"):
        decoded(image.attributes["href"]).load()


def test_a_map_has_the_unit_of_the_losses(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {"conv1.weight": (4, 3)})
    scores = read_scores(run / "scores.npz")
    write_scores(run / "scores.npz", replace(scores, estimator="acmi", comparable=True))
    render(run)
    assert "dependency (acmi), nats" in section(run).text


def test_maps_ask_for_nothing_but_what_the_page_holds(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {"<img src=x>.weight": (3, 3), "": (2, 2)})
    render(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    tree = parse(text)
    assert not re.search(r"https?://|url\((?!#)|@import|javascript:", text)
    for node in tree.all():
        assert "src" not in node.attributes
        href = node.attributes.get("href", "#")
        assert href.startswith(("#", "data:image/png;base64,"))
    assert not tree.all("img")
    for svg in tree.all("svg"):
        if svg.attributes.get("aria-hidden") != "true":
            assert svg.attributes["aria-label"]
    ids = [n.attributes["id"] for n in tree.all() if "id" in n.attributes]
    assert len(ids) == len(set(ids))


def test_the_plan_is_marked_on_the_maps(tmp_path: Path) -> None:
    """Rows are outputs and columns inputs; groups of channels take the share that leaves."""
    shapes = {"a.weight": (4, 6), "b.weight": (3, 5), "c.weight": (2, 2)}
    run = with_maps(
        tmp_path / "run",
        shapes,
        side("a.weight", 0, 4, [1]),
        side("a.weight", 1, 12, [0, 2], units=6),
        side("b.weight", 1, 10, [0, 2, 3]),
        side("c.weight", 1, 1, [0]),  # fewer channels than columns: another layer's meaning
    )
    a, b, c = collect(run)["scores"]["maps"]
    assert a["rows_gone"] == [0, 1, 0, 0]
    assert a["columns_gone"] == [1, 0, 1, 0, 0, 0]
    assert b["rows_gone"] is None
    assert b["columns_gone"] == [0.5, 1, 0, 0, 0]
    assert (c["rows_gone"], c["columns_gone"]) == (None, None)


def test_a_transposed_convolution_has_its_outputs_in_its_second_dimension(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {"up.weight": (4, 3)}, side("up.weight", 1, 4, [0]))
    plan = files.read_value(run / "plan.json", PruningPlan)
    up = PlanLayer(
        weight="up.weight", kind="ConvTranspose2d", shape=(3, 4, 2, 2), out_dim=1, macs=1
    )
    files.write_value(run / "plan.json", replace(plan, layers=(up,)))
    (found,) = collect(run)["scores"]["maps"]
    assert found["rows_gone"] == [1, 0, 0, 0]
    assert found["columns_gone"] is None


def test_many_maps_are_kept_coarser(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {f"l{i}.weight": (200, 100) for i in range(9)})
    body = render(run)["scores"]
    assert {tuple(m["cells"]) for m in body["maps"]} == {(64, 64)}
    assert (run / "report.html").stat().st_size < 600_000


def test_a_matrix_without_cells_is_left_out(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {"a.weight": (0, 4), "b.weight": (2, 2)})
    assert [m["consumer"] for m in collect(run)["scores"]["maps"]] == ["b"]


def test_losses_that_are_no_numbers_are_drawn_as_nothing(tmp_path: Path) -> None:
    run = runs.whole(tmp_path / "run")
    loss = np.array([np.nan, np.inf, 0.5])
    scores = Importance(
        groups={"odd": GroupImportance(loss=loss, order=np.arange(3))},
        criterion="mine",
        estimator=None,
        seed=0,
    )
    write_scores(run / "scores.npz", scores)
    body = render(run)["scores"]
    assert body["groups"][0]["columns"] == [None, None, 0.5]
    assert "odd: 3 units, losses 0.50 to 0.50" in (run / "report.html").read_text("utf-8")


def test_without_scores_there_is_no_section(tmp_path: Path) -> None:
    run = runs.begun(tmp_path / "run")
    assert render(run)["scores"] == {"done": False, "note": "not done yet", "stage": "score"}
    assert "#scores" not in (run / "report.html").read_text(encoding="utf-8")


def test_without_a_plan_nothing_is_marked(tmp_path: Path) -> None:
    run = with_maps(tmp_path / "run", {"conv1.weight": (4, 3)})
    (run / "plan.json").unlink()
    body = render(run)["scores"]
    assert not body["planned"]
    assert all("kept" not in g for g in body["groups"])
    assert "leaves with the plan" not in section(run).text


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"{}"])
def test_damaged_scores_cost_their_own_section(tmp_path: Path, content: bytes) -> None:
    run = runs.whole(tmp_path / "run")
    (run / "scores.npz").write_bytes(content)
    body = render(run)
    assert body["scores"]["damaged"]
    assert "scores.npz is damaged" in section(run).text
    assert any("scores.npz" in d["text"] for d in body["doubts"])
    assert body["groups"]["done"]
    assert body["widths"]["done"]


def test_new_scores_make_a_new_report() -> None:
    assert "scores.npz" in stage_named("report").reads
