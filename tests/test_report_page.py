"""The faces of the report: self-contained, well-formed, readable, and deaf to hostile names."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path

import pytest
import report_measured as measured
import report_runs as runs
from report_nets import resnet_layers
from report_page import parse
from rich.console import Console

from mint_deploy.report import collect, html, markdown, render
from mint_deploy.report.terminal import summary

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title><img src=https://evil.example/x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7*7 }}{% raw %}",
    "a | b `code` *bold* _x_ [link](https://evil.example) @everyone #1 &amp; \\",
    "[bold red]markup[/]",
    "\x1b[31mred\x1b[0m\x07\x00",
    "line\nbreak\r\ttab\u2028and",
    "right\u202eto\u202cleft",
    "lone \udcff surrogate",
    "']]>--><!--",
    "x" * 3000,
    "",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of each kind of run: ``name -> (text, tree)``."""
    found = {}
    for make in (runs.whole, runs.begun, runs.small, measured.full):
        run = make(tmp_path_factory.mktemp("page") / make.__name__)
        render(run)
        text = (run / "report.html").read_text(encoding="utf-8")
        found[make.__name__] = (text, parse(text))
    return found


def every(pages):
    return [tree for _, tree in pages.values()]


# ---------------------------------------------------------------- one file


def test_the_page_asks_for_nothing(pages):
    for text, tree in pages.values():
        assert not tree.all("script")
        assert not tree.all("link")
        assert not tree.all("img")
        assert not tree.all("iframe")
        assert "<script" not in text
        assert not re.search(r"https?://|url\((?!#)|@import|javascript:", text)
        for node in tree.all():
            assert not [name for name in node.attributes if name.startswith("on")]
            assert "src" not in node.attributes
            assert node.attributes.get("href", "#").startswith("#")


def test_links_lead_somewhere_and_ids_are_unique(pages):
    for tree in every(pages):
        ids = [n.attributes["id"] for n in tree.all() if "id" in n.attributes]
        assert len(ids) == len(set(ids))
        for node in tree.all():
            for key in ("href", "aria-labelledby"):
                if key in node.attributes:
                    assert node.attributes[key].lstrip("#") in ids


def test_tables_and_headings_serve_a_screen_reader(pages):
    for tree in every(pages):
        assert tree.one("html").attributes["lang"] == "en"
        assert len(tree.all("h1")) == 1
        levels = [int(n.tag[1]) for n in tree.all() if re.fullmatch("h[1-6]", n.tag)]
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        for head in tree.all("th"):
            assert head.attributes["scope"] in ("row", "col")
        for table in tree.all("table"):
            widths = set()
            for line in table.all("tr"):
                cells = [c for c in line.children if not isinstance(c, str)]
                widths.add(sum(int(c.attributes.get("colspan", 1)) for c in cells))
            assert len(widths) == 1, f"{table.attributes}: rows of {widths} cells"
        for region in tree.all("div", role="region"):
            assert region.attributes["tabindex"] == "0"
            assert region.attributes["aria-label"]


def test_every_picture_has_a_title_or_is_hidden(pages):
    for tree in every(pages):
        pictures = tree.all("svg")
        assert pictures
        for svg in pictures:
            if svg.attributes.get("aria-hidden") != "true":
                assert svg.attributes["role"] == "img"
                assert svg.attributes["aria-label"] == svg.all("title")[0].text != ""


def test_a_column_for_every_layer_says_its_widths(pages):
    _, tree = pages["whole"]
    said = [g.one("title").text for g in tree.one(id="cut").parent.all("g")]
    layers = resnet_layers()
    assert len(said) == 2 * len(layers)
    assert f"layer1.0.conv1: {layers[1]['before']} → {layers[1]['after']} channels" in said


def _themes() -> dict[str, dict[str, tuple[int, ...]]]:
    style = (Path(html.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    themes = {}
    for name, block in zip(
        ("light", "dark", "print"), re.findall(r":root \{(.*?)\}", style, re.DOTALL), strict=True
    ):
        found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)
        themes[name] = {k: tuple(int(v[i : i + 2], 16) for i in (0, 2, 4)) for k, v in found}
    return themes


def _contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_contrast_is_enough_in_every_theme(theme):
    colours = _themes()[theme]
    text = [("ink", "page"), ("ink", "panel"), ("ink", "faint"), ("soft", "page"),
            ("soft", "panel"), ("slim-ink", "page"), ("slim-ink", "panel"),
            ("good", "good-soft"), ("good", "panel"),
            ("warn", "warn-soft"), ("bad", "bad-soft"), ("bad", "panel")]  # fmt: skip
    for front, back in text:
        assert _contrast(colours[front], colours[back]) >= 4.5, (theme, front, back)
    for front, back in [
        ("slim", "panel"),
        ("dense", "panel"),
        ("control", "panel"),
        ("other", "panel"),
        ("slim", "dense-soft"),
        *((tone, f"{tone}-soft") for tone in ("slim", "dense", "control", "other")),
    ]:
        assert _contrast(colours[front], colours[back]) >= 3, (theme, front, back)


# ---------------------------------------------------------------- hostile names


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A finished run in which every name and every sentence is hostile."""
    run = runs.whole(tmp_path_factory.mktemp("hostile") / "a <b> & 'run'")
    names = iter(HOSTILE * 1000)

    def fill(value, key=""):
        if isinstance(value, dict):
            renamed = key in ("groups", "frozen", "per_class", "versions")
            return {
                (f"{next(names)}#{i}" if renamed else k): fill(v, k)
                for i, (k, v) in enumerate(value.items())
            }
        if isinstance(value, list):
            return [fill(v, f"{key}[]") for v in value]
        kept = (
            "kind",
            "step",
            "status",
            "scenario",
            "label",
            "a",
            "b",
            "tensor",
            "created",
            "part",
        )
        return next(names) if isinstance(value, str) and key not in kept else value

    for path in [*run.glob("*.json"), run / "measurements.jsonl"]:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        made = []
        for line in lines:
            body = json.loads(line)
            head = {k: body.pop(k) for k in ("kind", "schema", "written_by") if k in body}
            if path.name == "run.json":
                body["settings"] = {"model": HOSTILE[0], "data": HOSTILE[1], HOSTILE[2]: HOSTILE[4]}
                body["command"] = list(HOSTILE)
                body["created"] = HOSTILE[6]
            else:
                body = fill(body)
            made.append(json.dumps({**head, **body}))
        path.write_text("\n".join(made))
    (run / "target.toml").write_text('name = "<b>\\u001b[31m"')
    body = render(run)
    closed = {k: s for k, s in body.items() if isinstance(s, dict) and not s.get("done", True)}
    assert not closed
    return run


def test_hostile_names_stay_text_on_the_page(hostile):
    text = (hostile / "report.html").read_text(encoding="utf-8")
    tree = parse(text)
    assert not tree.all("script")
    assert not tree.all("img")
    for node in tree.all():
        assert not [name for name in node.attributes if name.startswith("on")]
    assert tree.one("h1").text == HOSTILE[0]
    for name in ("{{ 7*7 }}{% raw %}", "[bold red]markup[/]", '"><svg onload=alert(1)>'):
        assert name in tree.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)


def test_hostile_names_break_no_table_of_the_markdown(hostile):
    text = (hostile / "report.md").read_text(encoding="utf-8")
    assert len(text.encode()) < 64_000
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 5
    for table in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table[:500]
    bare = re.sub(r"(`+).*?\1", "", text)  # what stands in code spans is text
    assert not re.findall(r"<(?!/?details>|/?summary>)", bare)
    assert "https://" not in bare
    assert not re.search(r"@\w", bare)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_hostile_names_steer_no_terminal(hostile):
    said = printed(collect(hostile), force_terminal=True, color_system="truecolor")
    assert "\x07" not in said
    assert re.sub(r"\x1b\[[\d;]*m", "", said).count("\x1b") == 0
    assert "\x1b[31mred" not in said
    assert "<script>" in said  # shown as it is, as text


# ---------------------------------------------------------------- the Markdown


def test_the_markdown_stays_small_whatever_the_run_holds(tmp_path):
    frozen = {f"group.{i}." + "名" * 5000: "a reason " * 500 for i in range(300)}
    run = runs.whole(tmp_path / "huge", frozen=frozen)
    runs.append(run, [runs.timed(f"other{i}", 1.0, calls=20) for i in range(40)])
    render(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert len(text.encode()) < 64_000
    assert "and 288 more, in report.html" in text
    assert "1.73×" in text


def test_what_leads_is_kept_when_blocks_are_dropped(monkeypatch, tmp_path):
    body = collect(runs.whole(tmp_path / "whole"))
    whole = markdown.text(body)
    monkeypatch.setattr(markdown, "LIMIT_BYTES", 2500)
    short = markdown.text(body)
    assert len(short.encode()) < 2500 < len(whole.encode())
    assert short.splitlines()[0] == whole.splitlines()[0]
    assert short.rstrip().endswith("The rest stands in report.html.")


# ---------------------------------------------------------------- the terminal


def printed(body, *, width=100, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=stream, width=width, **options).print(summary(body))
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("make", [runs.whole, runs.begun, runs.small])
def test_the_summary_is_short_and_plain_where_there_is_no_terminal(make, tmp_path):
    body = collect(make(tmp_path / "run"))
    said = printed(body)
    assert "\x1b" not in said
    assert len(said.splitlines()) <= 30
    assert body["status"]["text"] in said.splitlines()[0]
    unbroken = re.sub(r"\s+", "", said)
    for step in body["next"]:
        assert re.sub(r"\s+", "", step["command"] or step["text"]) in unbroken
    assert re.sub(r"\s+", "", f"{tmp_path}/run/report.html") in unbroken


def test_the_summary_says_the_result(tmp_path):
    said = printed(collect(runs.whole(tmp_path / "run")))
    for figure in ("1.73× as fast (1.69 to 1.77, 95 % interval)", "0.513×", "−0.6 points",
                   "Promise kept", "25 of 26 groups", "predicted, not measured"):  # fmt: skip
        assert figure in said
    rows = [line for line in said.splitlines() if "on Jetson" in line]
    assert rows
    assert all("predicted, not measured" in line for line in rows)


def test_a_terminal_without_unicode_gets_ascii(tmp_path):
    said = printed(collect(runs.whole(tmp_path / "run")), encoding="ascii")
    assert "1.73x as fast" in said
    assert "-0.6 points" in said
