"""``doctor --machine``: how quiet this machine is, and what would make it quieter, for a person to read.

Lines of at most 100 columns (fewer where the terminal has fewer), in colours on a terminal.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mint_deploy.cli import show
from mint_deploy.errors import Interrupted
from mint_deploy.report import words

if TYPE_CHECKING:
    from mint_deploy.artifacts import Machine
    from mint_deploy.quiet import Quiet

__all__ = ["lines", "machine"]

#: a line as pieces of text with their style for a terminal
Line = list[tuple[str, str]]

WIDEST, NARROWEST = 100, 72
BARS = "▁▂▃▄▅▆▇█"
#: for a terminal that does not know them
_PLAIN = str.maketrans(
    {**dict(zip(BARS, ".:-=+*%#", strict=True)), "…": "~", "\N{MINUS SIGN}": "-", "µ": "u"}
)
#: smallest difference up to which a machine is called so, with its colour
_WORDS = (
    (0.01, "quiet", "bold green"),
    (0.03, "fairly quiet", "bold green"),
    (0.10, "noisy", "bold yellow"),
    (float("inf"), "very noisy", "bold red"),
)
_LABEL = 11


def machine(*, as_json: bool, seconds: float) -> None:
    """Watch the machine and print what was seen.

    Raises:
        Interrupted: it was ended early, after what was seen until then is printed.
    """
    from mint_deploy import progress
    from mint_deploy.quiet import observe

    teller = progress.for_terminal()
    with teller.stage("machine", "how quiet this machine is"):
        found = observe(seconds, progress=teller.step)
    if as_json:
        show.print_json(found)
    else:
        for line in lines(found, shutil.get_terminal_size((WIDEST, 24)).columns):
            _print(line)
    if found.interrupted:
        raise Interrupted(f"interrupted after {found.seconds:.0f} s; what was seen is shown")


def lines(found: Quiet, width: int = WIDEST) -> list[Line]:
    """Return what is printed, each line at most ``width`` columns (from 72 to 100)."""
    width = max(NARROWEST, min(WIDEST, width))
    out = [*_verdict(found, width), [], *_seen(found, width), []]
    out += [[("What would make it quieter, the most effective first", "bold")]]
    for n, advice in enumerate(found.advice, 1):
        out += _hung(f"{n:3}. ", advice.text, width, "")
        out.append([(" " * 5, ""), (words.plain(advice.command), "cyan")])
    out += [[], [("This machine", "bold")], *_record(found.machine, width), []]
    return out + [[(text, "dim")] for text in _wrapped(_how(found), width)]


# ---------------------------------------------------------------- sentences


def _verdict(found: Quiet, width: int) -> list[Line]:
    least = found.difference
    if least is None:
        why = found.nulls.get("difference", "")
        said = f"How quiet this machine is cannot be said: {why}."
        return [[(text, "bold yellow")] for text in _wrapped(said, width)]
    name, style = next((n, s) for limit, n, s in _WORDS if least.value <= limit)
    said = (
        f"This machine is {name}: a comparison of {least.seconds:.0f} s sees differences from "
        f"{words.share(least.value)} on (between {words.share(least.low)} and "
        f"{words.share(least.high)}); smaller ones stay inconclusive."
    )
    return [[(text, style)] for text in _wrapped(said, width)]


def _seen(found: Quiet, width: int) -> list[Line]:
    rows = [("runs", _runs(found)), ("slowdown", _slowdown(found)), ("blocks", _blocks(found))]
    rows += [
        ("steal", _or_why(found, "steal", _steal)),
        ("others", _or_why(found, "other_cpu", _others)),
        ("clock", _or_why(found, "frequency_mhz", _clock)),
        ("throttled", _or_why(found, "throttled", lambda f: _often(f.throttled, "slowed down"))),
        ("quota", _or_why(found, "quota_stops", lambda f: _often(f.quota_stops, "stopped"))),
    ]
    rows.append(("timer", _timer(found)))
    rows.append(("harness", f"the harness itself takes {words.duration(found.overhead_ns)} a call"))
    return [line for label, text in rows for line in _row(label, text, width)]


def _runs(found: Quiet) -> str:
    if found.piece_ns is None:
        return found.nulls.get("piece_ns", words.NOT_HERE)
    early = ", ended early" if found.interrupted else ""
    return (
        f"{words.count(found.runs)} of the same work, {words.duration(found.piece_ns)} the fastest, "
        f"in {len(found.blocks_ns)} blocks and {found.seconds:.1f} s{early}"
    )


def _slowdown(found: Quiet) -> str:
    slow = found.slowdown
    if slow is None:
        return found.nulls.get("slowdown", words.NOT_HERE)
    return (
        f"over the fastest run: median +{words.share(slow.median)}, 95th percentile "
        f"+{words.share(slow.p95)}, worst +{words.share(slow.worst)}"
    )


def _blocks(found: Quiet) -> str:
    if not found.blocks_ns:
        return "no block was finished"
    low, high = min(found.blocks_ns), max(found.blocks_ns)
    # a tenth of the fastest is the least that fills the bars: evenness must look even
    span = max(high - low, low / 10)
    bars = "".join(BARS[min(int(8 * (v - low) / span), 7)] for v in found.blocks_ns)
    return f"{bars}  medians from {words.duration(low)} to {words.duration(high)}"


def _steal(found: Quiet) -> str:
    return f"{words.share(found.steal)} of the CPU time went to other machines of the hypervisor"


def _others(found: Quiet) -> str:
    other, cores = found.other_cpu or 0.0, found.machine.cores
    if other < 0.005 and not found.processes:
        return f"nobody else used the {cores:g} cores"
    named = [f"{words.clip(p.name, 40)} {words.fixed(p.cores, 2)}" for p in found.processes[:5]]
    more = len(found.processes) - len(named)
    named += [f"{more} more"] if more > 0 else []
    if found.unseen_cpu is not None and found.unseen_cpu >= 0.01:
        named.append(f"{words.fixed(found.unseen_cpu, 2)} without a name here")
    said = f"{words.fixed(other, 2)} of {cores:g} cores"
    return f"{said}: {', '.join(named)}" if named else said


def _clock(found: Quiet) -> str:
    low, high = found.frequency_mhz or (0.0, 0.0)
    if high - low < 0.005 * high:
        told = ""
        if found.machine.governor is None:
            told = ", as the hypervisor tells it: what the host's clock did is not seen here"
        return f"{high:.0f} MHz throughout{told}"
    return f"{low:.0f} to {high:.0f} MHz while it worked"


def _timer(found: Quiet) -> str:
    clock = found.timer
    return (
        f"{clock.name}; resolves {words.duration(clock.resolution_ns)}, moves in steps of "
        f"{words.duration(clock.step_ns)} at the least, a reading takes "
        f"{words.duration(clock.reading_ns)}"
    )


def _often(count: int | None, what: str) -> str:
    if not count:
        return f"never {what}"
    return f"{what} {count} time{'s' if count > 1 else ''}"


def _or_why(found: Quiet, name: str, said: Any) -> str:
    if getattr(found, name) is None:
        return f"not readable here: {found.nulls.get(name, 'no look at it was finished')}"
    text: str = said(found)
    return text


def _record(record: Machine, width: int) -> list[Line]:
    """The machine in a few rows; what it does not tell is gathered by its reason."""
    details = record.details
    quota = details.get("cpu_quota_cores")
    switches = [
        f"{label} {'on' if details.get(name) else 'off'}"
        for name, label in (("turbo", "turbo"), ("smt", "SMT"))
        if details.get(name) is not None
    ]
    limits = [details.get(f"frequency_{end}_mhz") for end in ("min", "max")]
    clocks = [f"governor {record.governor}"] if record.governor else []
    clocks += switches
    clocks += [] if None in limits else [f"limits {limits[0]:.0f} to {limits[1]:.0f} MHz"]
    granted = "" if quota is None else f" (quota {quota:g})"
    rows = [
        ("CPU", f"{record.cpu}, {record.cores:g} cores{granted}"),
        ("clocks", ", ".join(clocks)),
        ("board", ", ".join(t for t in (record.board, record.power_mode) if t)),
        ("GPU", record.gpu or ""),
        ("inside", record.virtualization or ""),
        ("kernel", str(details.get("kernel") or "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
    ]
    out = [line for label, text in rows if text for line in _row(label, text, width)]
    by_reason: dict[str, list[str]] = {}
    for name, reason in (details.get("nulls") or {}).items():
        by_reason.setdefault(str(reason), []).append(str(name).replace("_", " "))
    for n, (reason, names) in enumerate(by_reason.items()):
        out += _row("not known" if n == 0 else "", f"{', '.join(names)}: {reason}", width, "dim")
    return out


def _how(found: Quiet) -> str:
    said = (
        "In each block two fresh processes did the same work in turns (A B B A), as two models do in "
        "a comparison; the ratio of their medians would be 1 on a quiet machine. "
    )
    least = found.difference
    if least is not None:
        n = len(found.log_ratios)
        said += (
            f"The smallest difference follows from its spread over the {n} blocks: {least.seconds:.0f} s "
            f"have room for {least.restarts} such restarts, and a true difference of that size keeps 1 "
            "out of their 95 % interval nine times in ten. The range beside it is how well "
            f"{n} blocks tell that spread (90 %). "
        )
    return said + "The whole record, every look and every ratio: --json."


# ---------------------------------------------------------------- lines


def _row(label: str, text: str, width: int, style: str = "") -> list[Line]:
    first, *rest = _wrapped(text, width - _LABEL - 2)
    out: list[Line] = [[(f"  {label:<{_LABEL}}", "bold"), (first, style)]]
    return out + [[(" " * (_LABEL + 2) + line, style)] for line in rest]


def _hung(mark: str, text: str, width: int, style: str) -> list[Line]:
    first, *rest = _wrapped(text, width - len(mark))
    out: list[Line] = [[(mark, "bold"), (first, style)]]
    return out + [[(" " * len(mark) + line, style)] for line in rest]


def _wrapped(text: str, width: int) -> list[str]:
    plain = words.plain(text)
    return textwrap.wrap(plain, width, break_long_words=True, break_on_hyphens=False) or [""]


def _print(line: Iterable[tuple[str, str]]) -> None:
    pieces = list(line)
    text = "".join(piece for piece, _ in pieces)
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        print(text.translate(_PLAIN).encode(encoding, "replace").decode(encoding))
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text.assemble(*pieces), soft_wrap=True)
    else:
        print(text)
