"""The committed table: totals on top, one row an architecture, then what is frozen and what the peer did."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conformance.catalogue import BATCH, SEED
from conformance.ours import SEEN, TOLERANCE
from mint_deploy.files import atomic, write_json
from mint_deploy.machine import probe

Row = dict[str, Any]
COMMAND = "python benchmarks/conformance.py"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
SOURCES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "Hugging Face transformers, small configurations",
    "zoo": "this package's zoo",
    "pattern": "patterns that are in no zoo (`tests/pattern_nets.py`, `tests/norm_nets.py`)",
}
EXACT = ("exact", "exact, rest frozen")


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write ``conformance.json`` and ``conformance.md``."""
    head = {
        "command": COMMAND,
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "seed": SEED,
        "batch": BATCH,
        "tolerance": TOLERANCE,
        "versions": versions(),
        "engine": Counter(r["engine"] for r in rows if r["side"] == "ours"),
        "machine": probe(),
    }
    short = [{k: v for k, v in r.items() if k != "traceback"} for r in rows]
    write_json(folder / "conformance.json", head | {"rows": short}, kind="Conformance")
    with atomic(folder / "conformance.md") as part:
        part.write_text(markdown(head, rows), encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in PACKAGES if name in installed}


def markdown(head: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the whole page."""
    ours = [r for r in rows if r["side"] == "ours"]
    peers = {r["name"]: r for r in rows if r["side"] == "peer"}
    lines = [
        "# Conformance: what the engine does on real architectures",
        "",
        *_totals(ours, list(peers.values())),
        "",
        *_how(head),
    ]
    for source, title in SOURCES.items():
        chosen = [r for r in ours if r["name"].startswith(source + "/")]
        version = head["versions"].get(source, "")
        if chosen:
            lines += ["", f"## {title} {version}".rstrip(), "", *_table(chosen, peers)]
    lines += ["", "## What is not cut, and why", "", *_frozen(ours)]
    lines += ["", "## torch-pruning, where it is not exact", "", *_peer(peers)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the top


def _totals(ours: Sequence[Row], peers: Sequence[Row]) -> list[str]:
    count = Counter(r["verdict"] for r in ours)
    cut = [r for r in ours if r["verdict"] in EXACT]
    shares = [r["cuttable"] for r in ours if "cuttable" in r]
    crossed = [r["crossing"] for r in cut]
    rest = {k: n for k, n in count.items() if k not in (*EXACT, "nothing to cut", "WRONG")}
    lines = [
        f"**{len(ours)} architectures: {len(cut)} exact** ({count['exact']} in whole, "
        f"{count['exact, rest frozen']} with some groups frozen and named), "
        f"{count['nothing to cut']} with nothing to cut, **WRONG: {count['WRONG']}**"
        + "".join(f", {k}: {n}" for k, n in sorted(rest.items()))
        + ".",
    ]
    if shares and crossed:
        lines.append(
            f"Layers that can be cut hold {sum(shares) / len(shares):.1%} of the multiply-adds on average. "
            f"Largest error against the independent reference: {max(crossed):.1g}; the least that a cut "
            f"made wrong on purpose is off by: {min(r['control'] for r in cut):.1g}."
        )
    if peers:
        found = Counter(r["verdict"] for r in peers)
        order = ("exact", "wrong", "crash", "nothing pruned", "time limit", "memory limit")
        lines.append(
            f"torch-pruning on the same {len(peers)}: "
            + ", ".join(f"{k} {found[k]}" for k in order if found[k])
            + "."
        )
    return lines


def _how(head: dict[str, Any]) -> list[str]:
    machine = head["machine"]
    states = ", ".join(f"{k}: {n}" for k, n in head["engine"].most_common())
    named = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
    return f"""\
Made by `{head["command"]}` on {head["date"]}: seed {head["seed"]}, batch {head["batch"]}, random weights
with redrawn statistics; {named}; Python {machine.python}, {machine.cpu}, one thread. What it needs stands in
CONTRIBUTING.md. About half of the units of every group leave at random (`plan(ratio=0.5, round_to=1)`).
Rows by the state of the engine's sources (their hash): {states}.

- **exact**: every group of the engine's can be cut and was proven by its gate, and the cut network agrees to
  {head["tolerance"]:g} with an independent reference (`benchmarks/conformance/absent.py`: the dense network run
  in float64 on values of which the removed ones are absent, statistics counted over those that are present).
  *Rest frozen*: so for what is cut; other groups stay, with the reason. The channels of the network's input and
  output, and groups of a single unit, are nobody's to cut and are not counted.
- **reference**: the difference from it. **control**: how far a cut is off that keeps one wrong channel in one
  tensor; below {SEEN:g} times the tolerance the verdict would be *no power*.
- **cuttable**: share of the multiply-adds in layers that some group enters. **MACs**: what is left of them after
  the cut, by PyTorch's own counter. **gate**: its largest error and least power; **back**: groups it rolled back.
- **trace, plan, cut, gate**: seconds of processor time (the whole gate). **memory**: the process's peak above
  what it held before the trace.
- **torch-pruning**: its verdict from the same reference, in brackets what is left of the MACs. Called as its
  documentation asks: `BasePruner`, random importance, `pruning_ratio=0.5`, the output's layers ignored, fresh
  dictionaries, `num_heads` given; attention once with narrower heads and once with fewer (the modules' numbers
  updated as in its examples), the better one counts. *crash*: it or its pruned network raises; *wrong*: it runs
  and computes something else. *time limit*, *memory limit*: not done in 180 s (some of them by the clock of a busy
  machine) or in 9 GiB.""".splitlines()


# ---------------------------------------------------------------- the rows

HEADER = (
    "architecture", "parameters", "groups", "frozen", "cuttable", "MACs", "gate: error", "power", "back",
    "reference", "control", "trace", "plan", "cut", "gate", "memory", "verdict", "torch-pruning",
)  # fmt: skip


def _table(rows: Iterable[Row], peers: dict[str, Row]) -> list[str]:
    lines = [_line(HEADER), _line(["---", *["---:"] * (len(HEADER) - 3), "---", "---"])]
    for r in rows:
        seconds = r.get("cpu_seconds", {})
        clock = [
            f"{seconds[k]:.2f}" if k in seconds else "" for k in ("trace", "plan", "cut", "gate")
        ]
        peer = peers.get(r["name"], {})
        left = f" ({peer['macs_kept']:.0%})" if peer.get("verdict") == "exact" else ""
        lines.append(
            _line(
                [
                    r["name"].partition("/")[2],
                    _millions(r.get("params")),
                    str(r.get("groups", "")),
                    str(r.get("avoidable", "")),
                    _share(r.get("cuttable")),
                    _share(r.get("macs_kept")),
                    _small(r.get("max_error")),
                    _small(r.get("least_power")),
                    str(len(r["rolled_back"])) if r.get("rolled_back") else "",
                    _small(r.get("crossing")),
                    _small(r.get("control")),
                    *clock,
                    f"{max(0, r['peak_rss_mb'] - r['rss_before_mb'])} MB"
                    if "peak_rss_mb" in r
                    else "",
                    r["verdict"],
                    peer.get("verdict", "not run") + left,
                ]
            )
        )
    return lines


def _frozen(rows: Sequence[Row]) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for r in rows:
        for why in {
            general(w) for w in [*r.get("frozen", {}).values(), *r.get("rolled_back", {}).values()]
        }:
            reasons[why].append(r["name"])
    lines = [_line(["reason", "architectures", "which"]), _line(["---", "---:", "---"])]
    for why, names in sorted(reasons.items(), key=lambda t: (-len(t[1]), t[0])):
        listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        lines.append(_line([why, str(len(names)), listed]))
    lines += ["", "The most common reasons of each network with frozen groups:", ""]
    for r in rows:
        whys = [*r.get("frozen", {}).values(), *r.get("rolled_back", {}).values()]
        said = Counter(general(why) for why in whys).most_common(3)
        if said:
            lines.append(f"- {r['name']}: " + "; ".join(f"{_cell(w)} ({n})" for w, n in said))
        elif r["verdict"] not in EXACT:
            why = r.get("error") or "it has channels of the input and the output alone"
            lines.append(f"- {r['name']}: {r['verdict']}: {_cell(why)[:300]}")
    return lines


def general(reason: str) -> str:
    """Return a reason's first clause without numbers and places, so that equal causes count together."""
    text = reason.split("; ")[0].removesuffix(" ...")
    text = re.sub(r" \(in .*?\)(?= |$|,)|, \S+\.py:\d+|\S+\.py:\d+", "", text)
    text = re.sub(r"'[^']*\.[^']*'", "a layer", text)
    text = re.sub(r"(the network raises \w+): .*", r"\1, so its code fixes a size", text)
    return re.sub(r"\b\d[\d.e+-]*", "N", text)


def _peer(peers: dict[str, Row]) -> list[str]:
    lines = []
    for name, r in peers.items():
        if r["verdict"] != "exact":
            way = f" [{r['way']}]" if r.get("way") else ""
            lines.append(f"- {name}: {r['verdict']}{way}: {_cell(r.get('error', ''))[:200]}")
    return lines or ["Nowhere."]


# ---------------------------------------------------------------- cells


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_cell(c) for c in cells) + " |"


def _cell(text: str) -> str:
    """Return text that cannot break a table: one line, no bars, no markup, no paths of a machine."""
    text = re.sub(r"/\S+/([^/\s]+\.py)", r"\1", " ".join(str(text).split()))
    return re.sub(r"([|<>*])", r"\\\1", text)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _millions(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f} M"
