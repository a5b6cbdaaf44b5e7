"""The report for a pull request: short, and under 64 kB whatever the run holds.

Names come from strangers: they stand in code spans, other text is escaped, and both are clipped,
so the size is bounded by the number of rows, which is bounded here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mint_deploy.report import precision, view, words

__all__ = ["LIMIT_BYTES", "text"]

#: what a comment or a step summary of a forge takes
LIMIT_BYTES = 64_000

_NAME, _SENTENCE, _ROWS = 80, 400, 12


def text(body: Mapping[str, Any]) -> str:
    """Return report.md; sections that matter least are left out where it would grow too long."""
    blocks = [maker(body) for maker in _BLOCKS]
    said = [block for block in blocks if block]
    while len("\n\n".join(said).encode()) > LIMIT_BYTES - 200 and len(said) > 2:
        said.pop()
    if len(said) < len([b for b in blocks if b]):
        said.append("The rest stands in report.html.")
    return "\n\n".join(said) + "\n"


# ---------------------------------------------------------------- words


def _say(value: object, width: int = _SENTENCE) -> str:
    """Return text that Markdown takes as text: no tag, no link, no table cell, no mention."""
    line = words.clip(value, width).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\`*_>\[\]|~#])", r"\\\1", line)
    return line.replace("://", "\\://").replace("@", "@\N{ZERO WIDTH SPACE}")


def _code(value: object, width: int = _NAME) -> str:
    """Return a name in a code span, safe inside a table cell."""
    line = words.clip(value, width).replace("|", "\\|")
    if not line.strip():
        return "–"
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    align = ["---" if i < left else "---:" for i in range(len(head))]
    lines = [head, align, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with(value: str, detail: str) -> str:
    return f"{value} ({detail})" if detail else value


def _more(total: int) -> str:
    return f"\n\nand {total - _ROWS} more, in report.html" if total > _ROWS else ""


# ---------------------------------------------------------------- blocks, the important first


def _precision(body: Mapping[str, Any]) -> str:
    return precision.markdown(body["precision"], _say, _code)


def _head(body: Mapping[str, Any]) -> str:
    title = f"## {_say(body['title'], 160)}: {_say(body['status']['text'])}"
    return f"{title}\n\n{_say(body['verdict'], 1200)}"


def _before_after(body: Mapping[str, Any]) -> str:
    rows, missing = [], []
    for line in view.before_after(body):
        rows.append(
            (
                _say(line.label),
                line.before,
                line.after,
                _with(line.change, line.detail),
                line.origin,
            )
        )
        if line.reason:
            missing.append(f"{_say(line.label)}: {_say(line.reason)}")
    made = _table(("", "dense", "slim", "slim against dense", ""), rows)
    return made + "".join(f"\n\n{reason}" for reason in missing[:_ROWS])


def _doubts(body: Mapping[str, Any]) -> str:
    found = body["doubts"]
    if not found:
        return ""
    rows = []
    for d in found[:_ROWS]:
        helps = f" What helps: {_say(d['advice'])}." if d["advice"] not in d["text"] else ""
        rows.append(f"- {_say(d['text'])} ({_say('; '.join(d['about']), 160)}).{helps}")
    return "### Doubts\n\n" + "\n".join(rows) + _more(len(found))


def _accuracy(body: Mapping[str, Any]) -> str:
    section = body["accuracy"]
    steps = view.steps(body)
    if not steps:
        return f"### Accuracy\n\n{_say(section['note'])}"
    agreement = section["measure"] == "agreement"
    title = "### Agreement with the dense network" if agreement else "### Accuracy"
    rows = [
        (
            _say(s.label),
            _with(s.test, s.test_span),
            _with(s.validation, s.validation_span),
            _with(s.change, s.change_span),
            s.flipped,
        )
        for s in steps
    ]
    made = _table(
        ("step", "test", "validation", f"change on {section['steps_part']}, points", "flipped"),
        rows,
    )
    promise = section["promise"]["text"]
    return f"{title}\n\n{made}" + (f"\n\n**Promise** {_say(promise)}" if promise else "")


def _speed(body: Mapping[str, Any]) -> str:
    if not body["latency"]["done"]:
        return f"### Speed\n\n{_say(body['latency']['note'])}"
    every = view.latency_rows(body)
    found = [r for r in every if r["scenario"] != "offline"]
    rows = [
        (
            _say(r["label"], 40),
            _say(r["how"], 120),
            _with(r["figures"]["median"], r["median_span"]),
            *(r["figures"][name] for name in ("p90", "p95", "p99")),
            r["memory"],
            r["energy"],
        )
        for r in found[:_ROWS]
    ]
    head = ("network", "how", "median", "p90", "p95", "p99", "memory", "energy")
    missing = [f"- {_say(of, 200)}: {_say(why)}" for why, of in view.gaps(every)[:_ROWS]]
    said = f"### Speed, measured on this machine\n\n{_table(head, rows, left=2)}"
    said += _more(len(found))
    return said + ("\n\nMissing, and why:\n\n" + "\n".join(missing) if missing else "")


def _throughput(body: Mapping[str, Any]) -> str:
    batches, rows = view.sweep_rows(body)
    title = "### Samples a second over the batch"
    if not rows:
        runs = body["latency"].get("runs", [])
        why = next((r["nulls"]["knee"] for r in runs if r["nulls"].get("knee")), "")
        return f"{title}\n\n{_say(why)}" if why else ""
    made = [
        (
            _say(r["label"], 40),
            _say(r["how"], 120),
            *(rate for rate, _ in r["cells"][:_ROWS]),
            r["knee"],
        )
        for r in rows[:_ROWS]
    ]
    head = ("network", "how", *(f"batch {b}" for b in batches[:_ROWS]), "knee")
    missing = "".join(
        f"\n\n{_say(r['label'], 40)}: {_say(r['reason'])}" for r in rows if r["reason"]
    )
    return f"{title}\n\n{_table(head, made, left=2)}{missing}"


def _board(body: Mapping[str, Any]) -> str:
    found = view.board_rows(body)
    if not found:
        return ""
    board = _say(body["predicted"]["board"] or "the board", _NAME)
    head = ("", f"{board}: predicted, not measured", "this machine: measured")
    rows = [
        (
            _say(r["label"], _NAME),
            _with(_say(r["predicted"], _NAME), r["predicted_span"]),
            _with(_say(r["measured"], _NAME), r["measured_span"]),
        )
        for r in found
    ]
    basis = body["predicted"].get("basis")
    said = f"### On the board\n\n{_table(head, rows[:_ROWS])}{_more(len(found))}"
    return f"{said}\n\nHow it was predicted: {_say(basis)}." if basis else said


def _cut(body: Mapping[str, Any]) -> str:
    if not body["widths"]["done"]:
        return f"### Where it was cut\n\n{_say(body['widths']['note'])}"
    parts: dict[str, list[int]] = {}
    for layer in body["widths"]["layers"]:
        sums = parts.setdefault(layer["name"].split(".", 1)[0], [0, 0, 0])
        sums[0] += 1
        sums[1] += layer["macs_before"]
        sums[2] += layer["macs_after"]
    rows = [
        (
            _code(name),
            words.count(n),
            words.short(before),
            words.short(after),
            words.share(after / before) if before else "–",
        )
        for name, (n, before, after) in parts.items()
    ]
    head = ("part", "layers", "MACs before", "after", "kept")
    return f"### Where it was cut\n\n{_table(head, rows[:_ROWS])}{_more(len(rows))}"


def _scores(body: Mapping[str, Any]) -> str:
    found = body["scores"]
    if not found["done"]:
        return ""
    rows = [
        (
            _code(g["name"]),
            f"{g['units']} → {g['kept']}" if g.get("kept") is not None else str(g["units"]),
            words.count(g["nothing"]),
            words.figure(g["least"]),
            words.figure(g["greatest"]),
        )
        for g in found["groups"][:_ROWS]
    ]
    loss = f", {_say(found['unit'], 40)}" if found["unit"] else ""
    head = ("group", "units", "free", f"least loss{loss}", "greatest")
    note = f"Free: units that cost nearly nothing, each {_say(found['nearly'])}."
    return f"### Scores\n\n{_table(head, rows)}{_more(len(found['groups']))}\n\n{note}"


def _frozen(body: Mapping[str, Any]) -> str:
    found = body["frozen"].get("groups") or []
    if not found:
        return ""
    rows = [(_code(g["name"]), _say(g["reason"], 200)) for g in found[:_ROWS]]
    return f"### Left whole\n\n{_table(('group', 'why'), rows, left=2)}{_more(len(found))}"


def _proof(body: Mapping[str, Any]) -> str:
    gate, export = body["gate"], body["export"]
    said = []
    if gate["done"]:
        worst = "" if gate["max_error"] is None else words.error(gate["max_error"])
        tail = f", largest relative error {worst}" if worst else ""
        said.append(
            f"Cut: {gate['proven']} of {gate['total']} groups that were cut are proven exact{tail}."
        )
        if words.restricted(gate):
            said.append(f"{words.restricted(gate)}.")
    else:
        said.append(f"Cut: {_say(gate['note'])}.")
    if body["lossless"].get("text"):
        said.append(f"Apart from the budget: {_say(body['lossless']['text'], 300)}.")
    if export["done"]:
        said += [
            f"Export, {side}: opset {f['opset']}, IR {f['ir_version']}, "
            f"{words.bytes_(f['bytes'])}, "
            f"largest relative error against PyTorch {words.error(f['max_error'])}."
            for side in ("dense", "slim")
            if (f := export.get(side))
        ]
    else:
        said.append(f"Export: {_say(export['note'])}.")
    return "### Proof\n\n" + "\n".join(f"- {line}" for line in said)


def _next(body: Mapping[str, Any]) -> str:
    rows = [
        f"- {_say(s['text'])}" + (f" {_code(s['command'], 300)}" if s["command"] else "")
        for s in body["next"]
    ]
    return "### What next\n\n" + "\n".join(rows) if rows else ""


def _made(body: Mapping[str, Any]) -> str:
    rows = [(k, v) for k, v in view.settings_rows(body["run"]) if v != words.NOT_HERE]
    for machine in body["machine"].get("machines", [])[:2]:
        rows += view.machine_rows(machine)
    lines = [(_say(name, _NAME), _say(value, 200)) for name, value in rows[:48]]
    if body["run"]["command"]:
        lines.insert(0, ("Command", _code(body["run"]["command"], 400)))
    table = _table(("", ""), lines, left=2)
    return f"<details><summary>Machine and settings</summary>\n\n{table}\n\n</details>"


#: in the order of the page; where it grows too long the last ones go first
_BLOCKS: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    _head,
    _before_after,
    _accuracy,
    _speed,
    _throughput,
    _precision,
    _board,
    _proof,
    _doubts,
    _next,
    _cut,
    _scores,
    _frozen,
    _made,
)
