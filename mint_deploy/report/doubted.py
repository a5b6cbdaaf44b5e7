"""What the measurer, the gate and the plan are not sure of, and what would help.

The measurer's doubts (:mod:`mint_deploy.doubts`) end with their remedy, after the last semicolon; for sentences
without one, as measurements of schema 1 have them, it is found by their words. Doubts of a sweep over batches that
differ in a number alone are told once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report.merging import about_runs, merged

__all__ = ["advice", "doubts", "parts"]

_QUIET = "mint-deploy doctor --machine says what disturbs this machine"
#: words of a doubt -> what helps; the first that fits counts
_HELP = (
    (r"restarts: the interval", "measure with more process restarts: --restarts 10"),
    (r"not converged", f"measure for longer, or {_QUIET}"),
    (r"medians of the restarts lie", "measure with more restarts, while nothing else runs"),
    (r"drifts", "warm up for longer; where it grows slower, let it cool or lock a lower clock"),
    (r"governor", "sudo cpupower frequency-set -g performance"),
    (r"load average|something else runs", f"stop other work; {_QUIET}"),
    (r"threads take every core", "leave a core free: fewer --threads"),
    (r"side by side", "measure both in turns: mint-deploy bench A.onnx --against B.onnx"),
    (r"could not be read", "measure again: the file was cut short"),
)


def advice(text: str) -> str:
    """Return what helps against a doubt, or "" where nothing general does."""
    return next((said for words, said in _HELP if re.search(words, text, re.IGNORECASE)), "")


def parts(doubt: Mapping[str, Any]) -> tuple[str, str]:
    """Return a doubt, beginning with a capital, and its advice apart."""
    text, help_ = str(doubt["text"]), str(doubt["advice"])
    if help_ and text.endswith(f"; {help_}"):
        text = text[: -len(help_) - 2]
    return text[:1].upper() + text[1:], help_


def doubts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return ``[{"text", "about", "advice"}]`` over the sections; any but ``latency`` may be absent.

    ``text`` is the whole sentence, with the advice at its end where the measurer gave one.
    """
    latency = body["latency"]
    runs = latency.get("runs", [])
    found = _measured(runs)
    said: dict[str, list[str]] = {}

    def add(text: str, about: str) -> None:
        places = said.setdefault(str(text), [])
        if about not in places:
            places.append(about)

    known = dict(found)
    for text, about in merged(
        (str(text), f"{c['b']} against {c['a']}")
        for c in latency.get("comparisons", [])
        for text in c["doubts"]
    ):
        if text in known:
            known[text].extend(about)
        else:
            found.append((text, about))
    if latency.get("unreadable_lines"):
        add(f"{latency['unreadable_lines']} lines of measurements.jsonl could not be read", "bench")
    if "run" in body and latency["done"] and latency["ratio"] is None:
        add("dense and slim were not measured side by side, so there is no ratio", "bench")
    for row in body.get("gate", {}).get("groups", []):
        if row["status"] not in ("proven", "whole"):
            why = f" ({row['reason']})" if row["reason"] else ""
            add(f"group {row['name']} is not proven: {row['status']}{why}", "gate")
    for note in body.get("groups", {}).get("notes", []):
        add(note, "plan")
    for key, value in body.items():
        if isinstance(value, Mapping) and value.get("damaged"):
            add(value["note"], key)
    measured = [
        {"text": t, "about": about, "advice": t.rpartition("; ")[2] if "; " in t else advice(t)}
        for t, about in found
    ]
    return measured + [{"text": t, "about": of, "advice": advice(t)} for t, of in said.items()]


def _measured(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the doubts of the measurements; those of latency before those of a sweep."""
    order = sorted(range(len(runs)), key=lambda i: runs[i]["scenario"] == "offline")
    said = []
    for i in order:
        own = list(runs[i]["doubts"])
        if not runs[i]["converged"] and not any("not converged" in d for d in own):
            own.append("not converged: the time ran out before the median's interval was narrow")
        said += [(str(text), str(i)) for text in own]
    out = []
    for text, at in merged(said):
        whole = 1 < len(at) == len(runs)
        about = ["every measurement"] if whole else about_runs(runs[int(i)] for i in at)
        out.append((text, about))
    return out
