"""The survey of a network and its picture: true to the graph, readable, self-contained, deaf to hostile names."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
import report_runs
import torch
from nets import PATTERN_NETS, build
from report_page import parse
from torch import Tensor, nn

from mint_deploy import files
from mint_deploy.errors import UnknownName
from mint_deploy.models import load_model
from mint_deploy.overview import Overview, SurveyedGroup, SurveyedLayer
from mint_deploy.report import render
from mint_deploy.report.dependency import picture
from mint_deploy.survey import survey
from mint_deploy.trace import trace

NS = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "]]>--><!--",
    "{{ 7*7 }}{% raw %}",
    "&amp; &#0; \x00\x1b[31m\x07",
    "right\u202eto\u202cleft\ud800",
    "line\nbreak",
    "x" * 3000,
    "",
)


class Residual(nn.Module):
    """A stem, two blocks on one stream, a LayerNorm over it and a head."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["down"](block["up"](x).relu())
        return self.head(self.norm(x))


def of(name: str) -> Overview:
    loaded = load_model(name)
    assert loaded.input_shape
    graph = trace(loaded.model, torch.zeros(1, *loaded.input_shape), probe=False)
    return survey(graph, model=name, probed=False)


def residual(blocks: int = 2) -> Overview:
    return survey(trace(Residual(blocks), torch.zeros(2, 6), probe=False), model="residual")


@pytest.fixture(scope="module")
def resnet56() -> Overview:
    return of("resnet56-cifar10")


def named(overview: Overview, name: str) -> SurveyedGroup:
    return next(g for g in overview.groups if g.name == name)


def layer(overview: Overview, name: str) -> SurveyedLayer:
    return next(x for x in overview.layers if x.name == name)


# ---------------------------------------------------------------- the survey


def test_groups_say_whom_they_join_and_what_they_hold() -> None:
    found = residual()
    stream = named(found, "stem")
    assert [found.layers[i].name for i in stream.layers] == [
        "stem",
        "blocks.0.down",
        "blocks.1.down",
    ]
    assert [found.layers[i].name for i in stream.readers] == ["blocks.0.up", "blocks.1.up", "head"]
    # stem's rows and biases, both blocks' slices, norm's scale and shift, head's columns
    assert stream.params == 16 * 7 + 2 * (16 * 32 + 16 * 33) + 2 * 16 + 16 * 3
    assert stream.macs == 16 * 6 + 2 * (16 * 32 * 2) + 16 * 3 == found.macs
    assert named(found, "blocks.0.up").macs == 2 * 16 * 32


def test_statuses_and_their_reasons() -> None:
    found = residual()
    stream = named(found, "stem")
    assert stream.status == "restricted"
    assert "layer_norm" in stream.reason
    assert named(found, "blocks.0.up").status == "cuttable"
    assert named(found, "blocks.0.up").reason == ""
    assert named(found, "head").status == "frozen"
    assert named(found, "head").reason == "reaches the network's output"
    assert named(found, "head").widths == 0


@pytest.mark.parametrize("name", sorted(PATTERN_NETS))
def test_all_that_a_layer_makes_belongs_to_some_group(name: str) -> None:
    model, inputs = build(name)
    found = survey(trace(model, inputs, probe=False))
    for one in found.layers:
        assert sum(n for _, n in one.makes) == one.width, one.name
        assert one.reads, one.name


def test_a_padded_shortcut_splits_a_layer_between_two_spines(resnet56: Overview) -> None:
    made = layer(resnet56, "layer2.3.conv2").makes
    assert [(resnet56.groups[g].name, n) for g, n in made] == [
        ("layer2.0.conv2", 16),
        ("conv1", 16),
    ]


def test_the_target_decides_the_widths(resnet56: Overview) -> None:
    loaded = load_model("resnet50")
    graph = trace(loaded.model, torch.zeros(1, 3, 64, 64), probe=False)
    fine, coarse = (
        named(survey(graph, target=t), "layer1.0.conv1") for t in ("jetson", "cpu-avx512")
    )
    assert (fine.step, coarse.step) == (8, 16)
    assert (fine.least, fine.widths, coarse.least, coarse.widths) == (8, 7, 16, 3)
    assert (
        named(resnet56, "conv1").step == 4
    )  # 16 channels: the step is halved until four widths exist
    with pytest.raises(UnknownName):
        survey(graph, target="jetsen")


def test_depthwise_layers_read_what_they_make() -> None:
    found = of("mobilenet-v2")
    deep = layer(found, "features.5.conv.1.0")
    assert deep.reads == deep.makes
    assert len(found.groups[deep.makes[0][0]].layers) == 2


def test_it_is_a_file(tmp_path, resnet56: Overview) -> None:
    files.write_value(tmp_path / "overview.json", resnet56)
    assert files.read_value(tmp_path / "overview.json", Overview) == resnet56


# ---------------------------------------------------------------- the picture


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - what this package wrote


def rows(tree: ET.Element) -> list[str]:
    return [t.text or "" for t in (r.find(f"{NS}title") for r in hits(tree)) if t is not None]


def hits(tree: ET.Element) -> list[ET.Element]:
    return [r for r in tree.iter(f"{NS}rect") if r.get("class") == "hit"]


def bars(tree: ET.Element, tone: str) -> list[ET.Element]:
    return [
        r
        for r in tree.iter(f"{NS}rect")
        if r.get("x", "").endswith("%") and tone in (r.get("class") or "").split()
    ]


def texts(tree: ET.Element) -> list[str]:
    return ["".join(t.itertext()) for t in tree.iter(f"{NS}text")]


def test_every_layer_has_a_row_in_its_order(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56))
    said = rows(tree)
    assert [s.partition(":")[0] for s in said] == [x.name for x in resnet56.layers]
    assert "makes 16 of group conv1, tied with 27 more layers" in said[0]
    assert "frozen: reaches the network's output" in said[-1]
    tops = [float(r.get("y", "")) for r in hits(tree)]
    assert tops == sorted(tops)
    assert tops[-1] < float(tree.get("height", ""))


def test_spines_have_a_dot_at_each_layer_that_must_follow(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56))
    middles = {
        x.name: float(r.get("y", "")) + float(r.get("height", "")) / 2
        for x, r in zip(resnet56.layers, hits(tree), strict=True)
    }
    dotted = [
        [float(c.get("cy", "")) for c in inner.findall(f"{NS}circle")]
        for inner in tree.findall(f"{NS}svg")
        if inner.get("overflow") == "visible"
    ]
    spines = [g for g in resnet56.groups if len(g.layers) > 1]
    assert sorted(dotted) == sorted(
        [middles[resnet56.layers[i].name] for i in g.layers] for g in spines
    )


def test_overlapping_spines_stand_apart(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56))
    places = [s.get("x") for s in tree.findall(f"{NS}svg") if s.get("overflow") == "visible"]
    assert len(places) == len(set(places)) == 3


def test_the_legend_counts_and_gives_the_reasons(resnet56: Overview) -> None:
    said = texts(parsed(picture(resnet56)))
    assert "30 groups can be cut: 100 % of the MACs" in said
    assert "conv1 · 16 units tie 28 layers" in said
    assert "27 others, each cut on its own" in said
    assert "1 frozen: reaches the network's output" in said


def test_restricted_groups_are_marked_in_bars_and_legend() -> None:
    tree = parsed(picture(residual()))
    assert bars(tree, "restricted")
    assert bars(tree, "over")
    assert any(t.startswith("1 restricted: 'layer_norm'") for t in texts(tree))


def test_frozen_bars_are_hatched(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56))
    assert len(bars(tree, "frozen")) == 2  # what the first layer reads, what the last makes
    assert any(p.get("id") == "dependency-frozen" for p in tree.iter(f"{NS}pattern"))


def test_what_a_plan_takes_away_is_pale(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56, keep={"layer1.0.conv1": 12}))
    pale = bars(tree, "gone")
    assert len(pale) == 2  # made by one layer, read by the next
    for whole in pale:
        x, wide = (float(whole.get(k, "").rstrip("%")) for k in ("x", "width"))
        kept = [
            b
            for b in bars(tree, "own")
            if b.get("y") == whole.get("y") and "gone" not in (b.get("class") or "")
            and abs(float(b.get("width", "").rstrip("%")) - 0.75 * wide) < 0.02
        ]  # fmt: skip
        assert any(x - 0.01 <= float(b.get("x", "").rstrip("%")) for b in kept)
    assert "pale: what the plan takes away" in texts(tree)
    assert not bars(parsed(picture(resnet56)), "gone")


@pytest.mark.parametrize("name", ["resnet8-digits", "vgg16-bn", "mobilenet-v2", "densenet121"])
def test_nothing_leaves_its_column(name: str) -> None:
    """Reads end at 40 %, makes begin at 50 %, MACs at 82 %: a phone's five digits fit between."""
    tree = parsed(picture(of(name)))
    for tone in ("own", "frozen", *(f"hue{n}" for n in range(6))):
        for bar in bars(tree, tone):
            x, wide = (float(bar.get(k, "").rstrip("%")) for k in ("x", "width"))
            if "reads" in (bar.get("class") or ""):
                assert 17.9 <= x <= x + wide <= 40.1
            else:
                assert 49.9 <= x <= x + wide <= 72.1
    for bar in bars(tree, "macs"):
        assert float(bar.get("width", "").rstrip("%")) <= 10.01


def test_many_equal_blocks_are_folded() -> None:
    found = residual(blocks=100)
    tree = parsed(picture(found))
    said = rows(tree)
    assert len(found.layers) == 202
    assert len(said) == 4
    assert said[1].startswith("blocks.0.up to blocks.99.up, 100 alike")
    assert "100 × up" in texts(tree)
    assert len(rows(parsed(picture(residual(blocks=40))))) == 82
    uneven = rows(parsed(picture(found, keep={"blocks.50.up": 8})))
    assert len(uneven) == 8  # 50 alike, the one that was cut, 49 alike
    assert uneven[3].startswith("blocks.50.up:")


def test_it_is_self_contained_and_without_scripts(resnet56: Overview) -> None:
    svg = picture(resnet56)
    assert len(svg) < 60_000
    body = svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|@import|javascript:|<script|<image|<foreignObject|href", body)
    assert set(re.findall(r"url\(([^)]*)\)", svg)) <= {
        "#dependency-frozen",
        "#dependency-restricted",
    }
    assert not re.search(r"\son\w+=", svg)


def test_a_screen_reader_hears_the_summary(resnet56: Overview) -> None:
    tree = parsed(picture(resnet56))
    assert tree.get("role") == "img"
    title = tree.find(f"{NS}title")
    assert title is not None
    assert tree.get("aria-label") == title.text
    assert "30 groups can be cut, 0 are restricted, 2 are frozen" in (title.text or "")


def test_light_and_dark_define_the_same_colours(resnet56: Overview) -> None:
    svg = picture(resnet56)
    used = set(re.findall(r"var\((--\w+)\)", svg))
    light, dark, paper = re.findall(r"\.dependency \{ (--.*?)\}", svg, re.DOTALL)
    for theme in (light, dark, paper):
        assert used <= set(re.findall(r"(--\w+):", theme))
    assert "prefers-color-scheme: dark" in svg


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(evil: str) -> None:
    found = residual()
    hostile = dataclasses.replace(
        found,
        model=evil,
        notes=(evil,),
        layers=tuple(
            dataclasses.replace(x, name=f"{evil}.{x.name}", kind=evil) for x in found.layers
        ),
        groups=tuple(
            dataclasses.replace(g, name=f"{evil}{g.name}", reason=evil) for g in found.groups
        ),
    )
    svg = picture(hostile)
    tree = parsed(svg)
    assert {e.tag.removeprefix(NS) for e in tree.iter()} <= {
        "svg", "title", "style", "defs", "pattern", "rect", "line", "circle", "text",
    }  # fmt: skip
    assert not [k for e in tree.iter() for k in e.attrib if k.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", svg)
    svg.encode("utf-8")
    if evil and len(evil) < 40 and evil.isprintable():
        assert any(evil in t for t in texts(tree))


def test_a_network_without_layers_has_a_picture() -> None:
    empty = dataclasses.replace(residual(), layers=(), groups=(), macs=0)
    assert rows(parsed(picture(empty))) == []


# ---------------------------------------------------------------- in the report


def test_the_report_shows_what_the_plan_took_away(tmp_path) -> None:
    render(report_runs.begun(tmp_path / "begun"))
    run = report_runs.whole(tmp_path / "run")
    body = render(run)
    pages = [
        parse((r / "report.html").read_text(encoding="utf-8")) for r in (tmp_path / "begun", run)
    ]
    assert not pages[0].all("svg", class_="dependency")
    (drawn,) = pages[1].all("svg", class_="dependency")
    assert "pale: what the plan takes away" in drawn.text
    assert all(
        s.attributes.get("aria-hidden") == "true" for s in drawn.all("svg") if s is not drawn
    )
    overview = files.decode(Overview, body["dependency"]["overview"])
    kept = body["dependency"]["keep"]
    narrower = [kept.get(g.name, g.width) < g.width for g in overview.groups]
    assert any(narrower)
    pale = [r for r in drawn.all("rect", class_="gone") if r.attributes["x"].endswith("%")]
    assert len(pale) == sum(narrower[g] for x in overview.layers for g, _ in (*x.makes, *x.reads))


def test_a_damaged_overview_costs_the_picture_alone(tmp_path) -> None:
    run = report_runs.whole(tmp_path / "run")
    files.write_json(run / "overview.json", {"layers": 3}, kind="Overview")
    body = render(run)
    assert body["dependency"]["damaged"]
    assert body["groups"]["done"]
    assert any("overview.json" in doubt["text"] for doubt in body["doubts"])
    assert 'class="dependency"' not in (run / "report.html").read_text(encoding="utf-8")
