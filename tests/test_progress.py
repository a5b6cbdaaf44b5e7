"""Progress: warnings are kept and told once, and every kind says when a stage ends."""

import io
import sys

import pytest

from mint_deploy.progress import Lines, Live, Progress, for_terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_quiet_one_keeps_the_warnings() -> None:
    quiet = Progress()
    with quiet.stage("plan", "choose what stays"):
        quiet.say("unheard")
        quiet.warn("too narrow")
        quiet.warn("too narrow")
        quiet.step(1, 2, "half")
    assert quiet.warnings == ["too narrow"]


def test_lines() -> None:
    out = io.StringIO()
    lines = Lines(out)
    with lines.stage("plan", "choose what stays"):
        lines.step(1, 4, "soon")
        lines.warn("too narrow")
        lines.warn("too narrow")
    said = out.getvalue().splitlines()
    assert said[0] == "warning: too narrow"
    assert said[1].startswith("  plan ")
    assert said[1].endswith(" s  choose what stays")
    assert len(said) == 2, "a short stage has no steps"


def test_a_long_stage_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "EVERY", 0.0)
    out = io.StringIO()
    lines = Lines(out)
    with lines.stage("recover", "train"):
        lines.step(1, 4, "loss 0.5")
        lines.step(1, 0, "not known how many")
    said = [line.split() for line in out.getvalue().splitlines()]
    assert said[0] == ["recover", "25", "%", "loss", "0.5"]
    assert said[1] == ["recover", "not", "known", "how", "many"]


def test_a_stage_that_fails_says_stopped() -> None:
    out = io.StringIO()
    lines = Lines(out)
    with pytest.raises(ValueError, match="no"), lines.stage("cut", "cut, and prove the cut"):
        raise ValueError("no")
    assert "stopped: cut, and prove the cut" in out.getvalue()


def test_live_on_a_terminal() -> None:
    out = Terminal()
    live = Live(out)
    with live.stage("recover", "train"):
        live.step(1, 4, "loss [0.5]")
        live.warn("[bold]not markup")
        live._bars.refresh()
    live.step(1, 4, "after the stage, unheard")
    text = out.getvalue()
    assert "loss [0.5]" in text
    assert "[bold]not markup" in text
    assert "\x1b[" in text
    assert text.rstrip().endswith("train\x1b[0m") or text.rstrip().endswith("train")


def test_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(for_terminal()) is Live
    assert type(for_terminal(quiet=True)) is Progress
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(for_terminal()) is Lines
