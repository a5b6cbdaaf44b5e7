"""The page of measurements, with and without a run folder: sections, reasons, digits, one file."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import report_measured as made
import report_runs as runs
from report_page import parse

from mint_deploy.compare import compare
from mint_deploy.errors import DataError
from mint_deploy.report import html_of_measurements, render

HOSTILE = '"><script>alert(1)</script>{{ 7*7 }}\x1b[31m\u202e</style>'
SECTIONS = {
    "run": (
        "tradeoff",
        "accuracy",
        "speed",
        "batch",
        "memory",
        "cut",
        "machine",
        "doubts",
        "settings",
    ),
    "bare": ("doubts", "speed", "batch", "memory", "layers", "machine"),
}


def relabelled(measurement, label, **task):
    return replace(measurement, task=replace(measurement.task, label=label, **task))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """``name -> (text, tree)`` of each kind of page."""
    run = made.full(tmp_path_factory.mktemp("page") / "full")
    render(run)
    everything, single = made.everything(), made.single("dense")
    texts = {
        "run": (run / "report.html").read_text(encoding="utf-8"),
        "bare": html_of_measurements(everything, [made.comparison()], command="mint-deploy bench"),
        "one": html_of_measurements([single]),
        "swept": html_of_measurements(made.swept("dense")),
        "old": html_of_measurements([runs.timed("dense", 3.0, calls=20)]),
        "three": html_of_measurements(
            [single, relabelled(made.single("slim"), "b"), relabelled(made.single("slim"), "c")],
            [made.comparison("dense", "b"), made.comparison("dense", "c")],
        ),
        "hostile": html_of_measurements(
            [relabelled(single, HOSTILE), relabelled(single, f"{HOSTILE}2", runtime=HOSTILE)],
            title=HOSTILE,
            command=HOSTILE,
        ),
    }
    return {name: (text, parse(text)) for name, text in texts.items()}


def text_of(pages, name):
    return pages[name][1].one("body").text.replace("\N{NO-BREAK SPACE}", " ")


# ---------------------------------------------------------------- what it shows


@pytest.mark.parametrize("name", ["run", "bare"])
def test_every_section_is_there(pages, name):
    tree = pages[name][1]
    for section in SECTIONS[name]:
        heading = tree.one("h2", id=section)
        assert heading.parent.attributes["aria-labelledby"] == section
        assert len(heading.parent.text) > len(heading.text)


@pytest.mark.parametrize("name", ["run", "bare"])
def test_figures_are_rounded_by_their_interval(pages, name):
    text = text_of(pages, name)
    for figure in (
        "1.73×", "1.69 to 1.77, 95 % interval", "3.46 ms", "(3.42 to 3.51)", "2.00 ms", "(1.99 to 2.01)",
        "p50 3.46 ms", "p90 3.59 ms", "p99 3.69 ms", "p99 2.12 ms",
        "dense at batch 16 (401 samples a second;", "slim at batch 8 (702 samples a second;",
        "24.5 MB", "72.5 MB", "97.0 MB", "262 kB", "197 kB", "1.78 MB", "853 k", "437 k",
        "2675 MHz", "0.80 %", "latency drifts by +6 to +9%".capitalize(),
    ):  # fmt: skip
        assert figure in text, figure
    assert not re.search(r"[1-9]\d*\.\d{4,}|0\.0*[1-9]\d{3,}", text)  # nothing unrounded


def test_the_plane_of_a_run_shows_every_step_with_both_intervals(pages):
    section = pages["run"][1].one(id="tradeoff").parent
    said = [g.one("title").text for g in section.all("g")]
    assert sorted(text.partition(":")[0] for text in said) == [
        "control", "cut", "dense", "recovered", "repaired",
    ]  # fmt: skip
    assert "recovered: 91.1 % (90.3 to 91.9) at 2.00 ms (1.99 to 2.01)" in said
    assert "cut: 40.7 % (39.4 to 42.1) at 2.00 ms (1.99 to 2.01)" in said
    assert "the slim network’s latency" in section.text
    for g in section.all("g"):
        assert len(g.all("line", class_="whisker")) == 2 or g.all("polygon")


def test_distributions_share_an_axis_and_show_each_restart(pages):
    lanes = pages["bare"][1].all("svg", class_="lane")
    assert len(lanes) == 2
    for lane in lanes:
        assert len(lane.all("circle", class_="each")) == 5
        assert len(lane.all("line", class_="mark")) == 3
        assert len(lane.all("rect", class_="band")) == 1
        assert "p90" in lane.attributes["aria-label"]
    grids = [[line.attributes["x1"] for line in lane.all("line", class_="grid")] for lane in lanes]
    assert grids[0] == grids[1]


def test_a_column_of_time_for_every_layer(pages):
    for name, widths in (("run", "cut"), ("bare", "layers")):
        section = pages[name][1].one(id=widths).parent
        said = [g.one("title").text for g in section.all("g")]
        times = [text for text in said if "µs" in text]
        assert len(times) == len([text for text in said if "channels" in text]) == 56
        assert "Outside these layers: dense 0.49 %, slim" in section.text.replace("\xa0", " ")


def test_the_machine_and_its_states_are_grouped(pages):
    section = pages["bare"][1].one(id="machine").parent
    titles = [h.text for h in section.all("h3", class_="minor")]
    assert titles == ["System", "CPU", "Clocks", "GPU", "Board", "Versions"]
    for reason in runs.MACHINE.details["nulls"].values():
        assert reason in section.text
    looks = next(
        r
        for r in section.all("div", role="region")
        if r.attributes["aria-label"].startswith("The machine")
    )
    heads = [h.text for h in looks.all("th") if h.attributes["scope"] == "col"]
    assert heads == ["Restart", "dense", "slim", "Load", "Steal", "Other CPU", "CPU clock"]
    assert len(looks.all("tr")) == 6
    assert "Temperature" in section.text  # it has no figure, and says so


def test_doubts_have_their_advice(pages):
    for name in ("run", "bare"):
        section = pages[name][1].one(id="doubts").parent
        helps = [s.text for s in section.all("span", class_="help")]
        assert any("stop other work" in text for text in helps)
        assert all(text.startswith("What helps: ") for text in helps)


# ---------------------------------------------------------------- what is missing


def test_a_picture_that_cannot_be_drawn_says_why(pages):
    absent = [p.text for p in pages["old"][1].all("p", class_="absent")]
    assert len(absent) == 3
    assert any("offline" in text for text in absent)  # the knee
    assert any("profiler" in text for text in absent)  # times of layers
    assert any("looks at the machine" in text for text in absent)
    swept = [p.text for p in pages["swept"][1].all("p", class_="absent")]
    assert any("no single_stream latency" in text for text in swept)
    text = text_of(pages, "old")
    assert "100 samples; p95 needs 130 for 99 % confidence" in text
    assert "No GPU memory: nvidia-smi is not on PATH or found no GPU" in text
    assert "No peak activations: not counted for this measurement" in text


def test_a_run_without_a_sweep_says_why_it_has_none(tmp_path):
    run = runs.whole(tmp_path / "run")
    (run / "measurements.jsonl").unlink()
    why = "no sweep over the batch: it needs 4 s more than the time budget has"
    runs.append(run, [replace(made.single(n), nulls={"knee": why}) for n in made.MODELS])
    render(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert why in page.replace("\N{NO-BREAK SPACE}", " ")
    assert why in (run / "report.md").read_text(encoding="utf-8")


def test_a_run_that_was_not_measured_has_no_plane_and_says_so(tmp_path):
    run = runs.whole(tmp_path / "run")
    for name in ("measurements.jsonl", "comparison.json"):
        (run / name).unlink()
    render(run)
    section = parse((run / "report.html").read_text(encoding="utf-8")).one(id="tradeoff").parent
    assert "the stage “bench” measures it" in section.one("p", class_="absent").text


def test_two_models_that_did_not_take_turns_have_no_ratio():
    tree = parse(html_of_measurements([made.single(n) for n in made.MODELS]))
    assert "not measured side by side" in tree.one(id="speed").parent.text
    lead = tree.one("li", class_="lead")
    assert "not measured side by side" in lead.text
    assert "3.46 ms" in lead.text.replace("\N{NO-BREAK SPACE}", " ")


def test_bursts_alone_show_their_distribution():
    m = relabelled(made.single("dense"), "dense", scenario="multi_stream", streams=4)
    tree = parse(html_of_measurements([m]))
    assert len(tree.all("svg", class_="lane")) == 1
    assert "multi_stream, batch 1, 1 thread, bursts of 4" in tree.one(id="speed").parent.text
    assert "no single_stream measurement" in tree.one("li", class_="lead").text


def test_nothing_measured_is_refused():
    with pytest.raises(DataError, match="no measurement to report; expected at least one"):
        html_of_measurements([])


# ---------------------------------------------------------------- several models, limits


def test_three_models_are_each_held_against_the_first(pages):
    tree = pages["three"][1]
    assert tree.one("h1").text == "b and c against dense"
    assert "These figures hold b against dense; the others stand below." in tree.text
    rows = tree.one(id="speed").parent.all("table", class_="steps")[0].all("tr")
    assert [r.one("th").text for r in rows[1:-1]] == [
        "b against dense faster",
        "c against dense faster",
    ]
    tones = [
        lane.all("circle")[0].attributes["class"].split()[1]
        for lane in tree.all("svg", class_="lane")
    ]
    assert len(set(tones)) == 3


def test_limits_and_what_came_of_them_lead_the_page():
    base, now = made.single("dense"), relabelled(made.single("slim"), "slim")
    verdict = compare(base, now, {"latency": "+5%", "memory": "-50%"})
    tree = parse(html_of_measurements([base, now], verdict=verdict))
    assert tree.one("span", class_="badge").text == verdict.state == "fail"
    rows = {r.one("th").text.split()[0]: r for r in tree.one(id="checks").parent.all("tr")[1:]}
    assert [rows[n].one("span", class_="status").text for n in ("latency", "memory")] == [
        "pass",
        "fail",
    ]
    assert "24.5 MB" in rows["memory"].text.replace("\N{NO-BREAK SPACE}", " ")


# ---------------------------------------------------------------- one file, for everyone


def test_every_page_is_one_file_that_asks_for_nothing(pages):
    for text, tree in pages.values():
        for tag in ("script", "link", "img", "iframe", "object", "embed"):
            assert not tree.all(tag), tag
        assert not re.search(r"https?://|url\((?!#)|@import|javascript:", text)
        for node in tree.all():
            assert not [name for name in node.attributes if name.startswith("on")]
            assert node.attributes.get("href", "#").startswith("#")


def test_links_lead_somewhere_and_headings_descend(pages):
    for _, tree in pages.values():
        ids = [n.attributes["id"] for n in tree.all() if "id" in n.attributes]
        assert len(ids) == len(set(ids))
        for node in tree.all():
            for key in ("href", "aria-labelledby"):
                if key in node.attributes:
                    assert node.attributes[key].lstrip("#") in ids
        levels = [int(n.tag[1]) for n in tree.all() if re.fullmatch("h[1-6]", n.tag)]
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_pictures_are_named_and_tables_have_heads_and_equal_rows(pages):
    for _, tree in pages.values():
        for svg in tree.all("svg"):
            if svg.attributes.get("aria-hidden") != "true":
                assert svg.attributes["role"] == "img"
                assert svg.attributes["aria-label"] == svg.all("title")[0].text != ""
        for head in tree.all("th"):
            assert head.attributes["scope"] in ("row", "col")
        for table in tree.all("table"):
            widths = {
                sum(
                    int(c.attributes.get("colspan", 1))
                    for c in r.children
                    if not isinstance(c, str)
                )
                for r in table.all("tr")
            }
            assert len(widths) == 1, table.attributes


def test_wide_tables_scroll_inside_themselves(pages):
    for _, tree in pages.values():
        for table in tree.all("table"):
            classes = table.attributes.get("class", "").split()
            inside, node = False, table
            while node.parent is not None:
                node = node.parent
                inside = inside or "scroll" in node.attributes.get("class", "").split()
            # what does not scroll has rows that become blocks on a phone, or two columns that wrap
            assert inside or {"plots", "facts-table"} & set(classes), table.text[:80]
        for region in tree.all("div", role="region"):
            assert region.attributes["tabindex"] == "0"
            assert region.attributes["aria-label"]


def test_paper_dark_and_phone_have_their_rules(pages):
    for text, _ in pages.values():
        style = text[text.index("<style>") : text.index("</style>")]
        assert "@media (prefers-color-scheme: dark)" in style
        assert "@media screen and (max-width: 700px)" in style
        paper = style[style.rindex("@media print") :]
        assert "break-inside: avoid" in paper
        assert "table-header-group" in paper
        assert re.search(r"\.scroll \{ overflow-x: auto", style)


def test_hostile_names_stay_text(pages):
    text, tree = pages["hostile"]
    assert not tree.all("script")
    assert tree.one("h1").text.startswith('"><script>alert(1)</script>{{ 7*7 }}')
    assert "49" not in tree.one("h1").text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_equal_measurements_give_equal_pages():
    found = [made.single("dense")]
    assert html_of_measurements(found) == html_of_measurements(found)
