"""What the figures say together: the verdict in a sentence, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from mint_deploy.report import view, words

__all__ = ["next_steps", "status", "verdict"]

#: section -> the stage that makes it, in the order of the pipeline
_STAGES = (
    ("cost", "plan"),
    ("gate", "cut"),
    ("accuracy", "recover"),
    ("export", "export"),
    ("latency", "bench"),
)


def _open_stage(body: Mapping[str, Any]) -> str | None:
    """Return the first stage that has not run, or whose file is damaged."""
    for key, stage in _STAGES:
        if not body[key]["done"]:
            return stage
        unrecovered = key == "accuracy" and not body[key]["recovered"]
        if unrecovered and body["run"]["settings"].get("recover", "train") == "train":
            return stage
    return None


def status(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"state": unfinished | broken | kept | inconclusive | done, "text": ...}``."""
    stage = _open_stage(body)
    promise = body["accuracy"].get("promise") or {}
    if promise.get("kept") is False:
        return {"state": "broken", "text": "promise broken"}
    if stage is not None:
        return {"state": "unfinished", "text": f"not finished: {stage} is next"}
    if promise.get("kept"):
        return {"state": "kept", "text": "promise kept"}
    if promise.get("max_accuracy_drop") is not None:
        return {"state": "inconclusive", "text": "promise undecided"}
    return {"state": "done", "text": "finished"}


def verdict(body: Mapping[str, Any]) -> str:
    """Return the result in two or three sentences, with intervals, ratios first."""
    rows = {row["key"]: row for row in body["headline"]}
    said = []
    speed = rows["latency"]
    if speed.get("speedup") is not None:
        figure, span = words.between(speed["speedup"], speed["speedup_low"], speed["speedup_high"])
        inside = (
            f"({span}, {100 * speed['confidence']:.0f} % interval, {speed['restarts']} restarts)"
        )
        pace = f"{figure}×"
        if speed["seen"] == "faster":
            said.append(
                f"Runs {pace} as fast as the dense network, measured on this machine {inside}."
            )
        elif speed["seen"] == "slower":
            said.append(f"Runs SLOWER: {pace} the dense network's speed, measured {inside}.")
        else:
            said.append(f"No difference in speed was seen: {pace} {inside}.")
    macs, params = rows["macs"], rows["params"]
    if macs["ratio"] is not None:
        verb = "Keeps" if macs["origin"] == "computed" else "The plan keeps"
        said.append(
            f"{verb} {words.percent(macs['ratio'])} of the multiply-adds and "
            f"{words.percent(params['ratio'])} of the parameters."
        )
    found = body["accuracy"]
    if found["done"] and found["final"]:
        row = rows[f"accuracy_{found['leads']}"]
        if row["before"] is not None and row["after"] is not None:
            said.append(_accuracy_sentence(row, found))
    return " ".join(said) or "Nothing was cut yet."


def _accuracy_sentence(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    places = view.accuracy_places({"accuracy": found})
    change = row["change"] or {}
    text = (
        f"{row['label'].replace(',', ' on the')} part: {words.percent(row['before'], places)} "
        f"before, {words.percent(row['after'], places)} after"
    )
    if change.get("low") is not None:
        fine = words.accuracy_places([(change["low"], change["high"])], scale=1)
        text += (
            f", a paired change of {words.points(change['points'], fine)} points "
            f"({words.span(change['low'], change['high'], fine)})"
        )
    if not found["recovered"]:
        text += "; not recovered yet" if found["final"] == "cut" else "; not fine-tuned"
    return text + "."


def next_steps(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return ``[{"text", "command"}]``; a command is one that mint-deploy has, or None."""
    run = shlex.quote(body["run"]["folder"])
    steps: list[dict[str, Any]] = []

    def add(text: str, command: str | None = None) -> None:
        steps.append({"text": text, "command": command})

    stage = _open_stage(body)
    if stage is not None:
        add(f"Go on with the next stage ({stage}).", f"mint-deploy {stage} {run}")
    promise = body["accuracy"].get("promise") or {}
    if promise.get("kept") is False:
        add("Win accuracy back: train longer (--epochs), or keep more (a larger --macs).")
    elif body["status"]["state"] == "inconclusive":
        add("Decide the promise: judge it on more held-out images, so that its interval narrows.")
    if stage is None:
        add(
            "Use the slim network in Python.",
            f'model = mint_deploy.load("{body["run"]["folder"]}")',
        )
    if "bundle" in body["run"]["files"]:
        add(
            "Take the folder bundle/ to the board; its README says how to build and measure there.",
            None,
        )
    seen = body["latency"].get("ratio") or {}
    noisy = any(d["about"] != ["plan"] and d["about"] != ["gate"] for d in body["doubts"])
    if body["latency"]["done"] and (noisy or seen.get("seen") == "no difference seen"):
        add("Measure again on a quieter machine.", f"mint-deploy bench {run}")
    return steps
