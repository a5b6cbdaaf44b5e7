"""The pages in a real browser, at the widths of a phone, a tablet and a screen: nothing sticks out.

Skipped, with the reason, where no Chromium is on PATH. One start of the browser looks at all of them: a
page of frames asks each for its own width.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
import report_measured as made
import report_runs as runs

from mint_deploy.report import html_of_measurements, render

WIDTHS = (360, 820, 1440)
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
LONG = "a_network_whose_name_has_no_place_to_break_" * 4

#: what each frame answers: its width, that of its document, and what sticks out without scrolling
ASK = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, wide = frame.clientWidth;
    const out = [...page.body.querySelectorAll("*")].filter(node =>
      node.getBoundingClientRect().right > wide + 1
      && getComputedStyle(node).clipPath === "none"
      && !node.closest(".scroll, svg"));
    return {
      wide, document: page.documentElement.scrollWidth,
      out: out.slice(0, 5).map(n => n.tagName + "." + n.className + " " + n.textContent.slice(0, 40)),
      texts: [...page.querySelectorAll("svg text")].filter(t => {
        const box = t.getBoundingClientRect();
        return !t.closest(".scroll, details") && (box.right > wide + 1 || box.left < -1);
      }).slice(0, 5).map(t => t.textContent),
      small: [...page.querySelectorAll("body *")].filter(n =>
        n.childElementCount === 0 && n.textContent.trim() && n.tagName !== "title"
        && !n.closest(".dependency, .heatmap") // drawings with a scale of their own
        && parseFloat(getComputedStyle(n).fontSize) < 11).map(n => n.textContent.slice(0, 40)).slice(0, 5),
    };
  });
  document.body.innerHTML = "";
  document.body.append(JSON.stringify(found));
});
</script>
"""


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """``[(page, width, answer)]`` of every page at every width."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH: the page is looked at in a browser where there is one")
    folder = tmp_path_factory.mktemp("screens")
    run = made.full(folder / "full")
    render(run)
    render(runs.begun(folder / "begun"))
    odd = [made.single("dense"), made.single("slim")]
    odd = [
        type(m)(
            **{
                **fields(m),
                "task": type(m.task)(**{**fields(m.task), "label": f"{m.task.label}{LONG}"}),
            }
        )
        for m in odd
    ]
    pages = {
        "full": (run / "report.html").read_text(encoding="utf-8"),
        "begun": (folder / "begun/report.html").read_text(encoding="utf-8"),
        "bare": html_of_measurements(made.everything(), [made.comparison()]),
        "odd": html_of_measurements(odd),
    }
    asked = [(name, width) for name in pages for width in WIDTHS]
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(pages[name])}"></iframe>'
        for name, width in asked
    )
    wrapper = folder / "frames.html"
    wrapper.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frames}{ASK}", encoding="utf-8")
    answer = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1600,900", "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<body>(\[.*\])</body>", answer.stdout, re.DOTALL)
    if found is None:
        pytest.skip(f"Chromium does not run here: {(answer.stderr or answer.stdout)[-300:]}")
    answers = json.loads(html.unescape(found[1]))
    assert len(answers) == len(asked)
    return [(*key, answer) for key, answer in zip(asked, answers, strict=True)]


def fields(value):
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_no_document_is_wider_than_its_window(looked):
    for name, width, answer in looked:
        assert answer["wide"] == width
        assert answer["document"] <= width, (name, width, answer["out"])
        assert answer["out"] == [], (name, width)


def test_no_label_of_a_picture_leaves_the_window(looked):
    for name, width, answer in looked:
        assert answer["texts"] == [], (name, width)


def test_nothing_is_too_small_to_read(looked):
    for name, width, answer in looked:
        assert answer["small"] == [], (name, width)
