"""How often the interval on a ratio covers the true one, the stopping rule included, by simulation.

    python benchmarks/interval_coverage.py [--draws 2000] [--only skewed,bursts] [--seed 0] [--table]

Every draw is a whole comparison: latencies of A and B in blocks A B B A over process restarts (12 pairs of blocks,
10 calls a block), of which the restarts' figures are taken as the harness takes them. A rule then adds restarts
until its question is answered or 24 are done (60 s on a slow machine). Covered: the interval that it ends with
holds the true ratio. The questions are a width (±1 %), a limit of 3 % at a true ratio of 1, and a limit that IS
the true ratio: that one has no answer, and whatever a rule answers is wrong.

Results are kept after each generator in benchmarks/results/interval_coverage.json, so a stopped run goes on where
it was; interval_coverage.md is the table. Exit code 1: the shipped rule covers less than 93 % somewhere. Some
minutes on one core. (Not called coverage.py: numba imports a module of that name where it finds one.)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy import statistics, stopping
from mint_deploy._student import t_quantile
from mint_deploy.statistics import Interval

RESULTS = Path(__file__).resolve().parent / "results"
RESTARTS, PAIRS, CALLS = 24, 12, 10
#: blocks that pass between two restarts: new processes, imports, warm-up
GAP = 40
CLAIMED, PROMISED = 0.95, 0.93
#: how far two restarts of one comparison lie apart, measured on a busy machine of two cores
OWN = 0.0125

Rng = np.random.Generator
Array = Any  # numpy arrays of float64


# ---------------------------------------------------------------- latencies


def times() -> tuple[Array, Array]:
    """When each block of A and of B runs, ``[restarts, pairs]`` in blocks: A B B A, then B A A B."""
    start = np.arange(RESTARTS)[:, None] * (2 * PAIRS + GAP)
    first = start + 4 * (np.arange(PAIRS)[None] // 2) + np.where(np.arange(PAIRS) % 2, 3, 0)
    second = start + 4 * (np.arange(PAIRS)[None] // 2) + np.where(np.arange(PAIRS) % 2, 2, 1)
    turn = (np.arange(RESTARTS) % 2 == 1)[:, None]
    return np.where(turn, second, first), np.where(turn, first, second)


def ar1(rng: Rng, shape: tuple[int, ...], phi: float) -> Array:
    """Unit normal numbers that each resemble the one before along the last axis."""
    out = rng.standard_normal(shape)
    for t in range(1, shape[-1]):
        out[..., t] = phi * out[..., t - 1] + math.sqrt(1 - phi * phi) * out[..., t]
    return out


def latencies(
    rng: Rng,
    draws: int,
    *,
    own: Array,
    machine: Array | None = None,
    felt: float = 1.0,
    noise: Callable[[int], Array] | None = None,
) -> tuple[Array, Array]:
    """Latencies of A and B ``[draws, restarts, pairs, calls]``; the true ratio of both is 1.

    ``own`` ``[2, draws, restarts]``: what a process has for itself; ``machine`` ``[draws, time]``: what happens
    to both, of which B feels ``felt`` times as much; ``noise(model)``: of single calls, its lower quartile the
    same for both. All are logarithms.
    """
    out = []
    for model, when in enumerate(times()):
        log = own[model][:, :, None, None] + np.zeros((1, 1, PAIRS, CALLS))
        if machine is not None:
            log = log + (felt if model else 1.0) * machine[:, when][..., None]
        shape = (draws, RESTARTS, PAIRS, CALLS)
        log = log + (noise(model) if noise else 0.02 * rng.standard_normal(shape))
        out.append(np.exp(log))
    return out[0], out[1]


SHAPE = (RESTARTS, PAIRS, CALLS)
LENGTH = RESTARTS * (2 * PAIRS + GAP)


def normal(rng: Rng, draws: int) -> tuple[Array, Array]:
    """Processes differ as normal numbers do, calls too."""
    return latencies(rng, draws, own=OWN / 2**0.5 * rng.standard_normal((2, draws, RESTARTS)))


#: of a lognormal number: exp of the lower quartile of a normal one
_QUARTILE = math.exp(-0.67449)


def skewed(rng: Rng, draws: int) -> tuple[Array, Array]:
    """Calls are lognormally late, B's twice as much as A's; some processes are slow, B's more so."""
    own = rng.exponential(OWN, (2, draws, RESTARTS)) - OWN
    own[0] *= 0.5

    def noise(model: int) -> Array:
        scale = 0.04 if model else 0.02
        late = np.exp(rng.standard_normal((draws, *SHAPE)))
        return np.log1p(scale * (late - 1)) - math.log1p(scale * (_QUARTILE - 1))

    return latencies(rng, draws, own=own, noise=noise)


def heavy_tailed(rng: Rng, draws: int) -> tuple[Array, Array]:
    """Student's t with 2 degrees of freedom between calls and 2.5 between processes; Pareto stalls."""
    own = 0.6 * OWN * rng.standard_t(2.5, (2, draws, RESTARTS))

    def noise(_: int) -> Array:
        size = (draws, *SHAPE)
        stalls = np.where(rng.random(size) < 0.03, 0.2 * rng.pareto(1.5, size), 0.0)
        # as many calls are early as stall, so that the median stays
        early = np.where(rng.random(size) < 0.03, -0.05, 0.0)
        return 0.01 * rng.standard_t(2, size) + np.where(stalls > 0, np.log1p(stalls), early)

    return latencies(rng, draws, own=own, noise=noise)


def autocorrelated(rng: Rng, draws: int) -> tuple[Array, Array]:
    """The machine's speed wanders within a restart and over several, and B feels it a twentieth more."""
    machine = 0.05 * ar1(rng, (draws, LENGTH), 0.9) + 0.1 * ar1(rng, (draws, LENGTH), 0.995)
    own = OWN / 2**0.5 * rng.standard_normal((2, draws, RESTARTS))
    return latencies(rng, draws, own=own, machine=machine, felt=1.05)


def drifting(rng: Rng, draws: int) -> tuple[Array, Array]:
    """Every restart warms up by 10 %, and the whole run slows down by up to 40 %."""
    t = np.arange(LENGTH)
    warm = 0.1 * np.exp(-(t % (2 * PAIRS + GAP)) / 8)
    slope = rng.uniform(-0.1, 0.4, (draws, 1)) * t / LENGTH
    own = OWN / 2**0.5 * rng.standard_normal((2, draws, RESTARTS))
    return latencies(rng, draws, own=own, machine=warm + slope)


def bursts(rng: Rng, draws: int) -> tuple[Array, Array]:
    """A neighbour computes for a few blocks now and then; a process in twenty is off by 8 %."""
    busy = np.zeros((draws, LENGTH))
    on = np.zeros(draws, dtype=bool)
    height = np.zeros(draws)
    for t in range(LENGTH):
        begins = ~on & (rng.random(draws) < 0.03)
        height = np.where(begins, rng.uniform(0.2, 1.0, draws), height)
        on = np.where(on, rng.random(draws) > 0.25, begins)
        busy[:, t] = np.where(on, height, 0.0)
    own = OWN / 2**0.5 * rng.standard_normal((2, draws, RESTARTS))
    own += np.where(rng.random(own.shape) < 0.05, rng.choice([-0.08, 0.08], own.shape), 0.0)
    return latencies(rng, draws, own=own, machine=busy)


def waiting(rng: Rng, draws: int) -> tuple[Array, Array]:
    """Two of five calls wait for somebody's turn, for as long as 1.5 calls of A; B is 10 % slower."""
    own = OWN / 2**0.5 * rng.standard_normal((2, draws, RESTARTS))
    a, b = latencies(rng, draws, own=own)
    waits = [
        np.where(rng.random(a.shape) < 0.4, 1.5 * rng.uniform(0.5, 1.5, a.shape), 0) for _ in "ab"
    ]
    # a slower model waits no longer: divided by the true ratio, its waits are shorter
    return a + waits[0], b + waits[1] / 1.1


GENERATORS: dict[str, Callable[[Rng, int], tuple[Array, Array]]] = {
    "normal": normal,
    "skewed": skewed,
    "heavy-tailed": heavy_tailed,
    "autocorrelated": autocorrelated,
    "drifting": drifting,
    "bursts": bursts,
    "waiting": waiting,
}
#: where the medians of all calls have another true ratio than the quartiles: its logarithm
MEDIANS = {"skewed": math.log1p(0.02 * (_QUARTILE - 1)) - math.log1p(0.04 * (_QUARTILE - 1))}


# ---------------------------------------------------------------- a restart's figure


def neighbours(a: Array, b: Array) -> Array:
    """``[draws, restarts]`` as :func:`mint_deploy.statistics.log_ratios` makes them from blocks."""
    # two blocks have calls enough for a group
    sides = [np.quantile(x.reshape(*x.shape[:2], PAIRS // 2, -1), 0.25, axis=-1) for x in (a, b)]
    return np.median(np.log(sides[1] / sides[0]), axis=-1)


def pairs(a: Array, b: Array) -> Array:
    """The median over pairs of blocks of their medians' ratio."""
    return np.median(np.log(np.median(b, axis=-1) / np.median(a, axis=-1)), axis=-1)


def medians(a: Array, b: Array) -> Array:
    """Median of B over median of A, blocks or not."""
    whole = [np.median(x.reshape(*x.shape[:2], -1), axis=-1) for x in (a, b)]
    return np.log(whole[1] / whole[0])


# ---------------------------------------------------------------- rules

Ended = tuple[int, float, float]
Stops = Callable[[Interval], bool]
QUESTIONS: dict[str, stopping.Rule] = {
    "width 1 %": stopping.Rule(),
    "limit 3 %": stopping.Rule(limit=0.03),
    "limit = truth": stopping.Rule(limit=0.0),
}


def looks(upto: int) -> Iterator[int]:
    """The counts at which a rule looks; the last is where the time ends."""
    yield from (n for n in range(2, upto) if stopping.is_look(n))
    yield upto


def at_looks(make: Callable[[Array], Interval]) -> Callable[[Array, stopping.Rule], Ended]:
    """A rule that makes the interval ``make`` at each look."""

    def run(logs: Array, rule: stopping.Rule) -> Ended:
        for n in looks(len(logs)):
            found = make(logs[:n])
            if rule.answered(found):
                break
        return n, found.low, found.high

    return run


def plain(confidence: float) -> Callable[[Array], Interval]:
    """The t interval, whatever the number of restarts."""

    def make(logs: Array) -> Interval:
        n, centre = len(logs), float(np.mean(logs))
        reach = t_quantile((1 + confidence) / 2, n - 1) * float(np.std(logs, ddof=1)) / n**0.5
        low, middle, high = (math.exp(centre + side * reach) for side in (-1, 0, 1))
        return Interval(ratio=middle, low=low, high=high, confidence=confidence, n=n, method="t")

    return make


def stein(logs: Array, rule: stopping.Rule) -> Ended:
    """Two stages: five restarts say how many are needed, and their spread makes the interval."""
    first = stopping.FIRST_LOOK
    pilot = float(np.std(logs[:first], ddof=1))
    t = t_quantile((1 + CLAIMED) / 2, first - 1)
    wanted = (
        rule.half_width
        if rule.limit is None
        else max(abs(np.mean(logs[:first]) - rule.limit), 1e-9)
    )
    n = int(min(max(first, math.ceil((t * pilot / wanted) ** 2)), len(logs)))
    centre, reach = float(np.mean(logs[:n])), t * pilot / n**0.5
    return n, math.exp(centre - reach), math.exp(centre + reach)


def fixed(n: int) -> Callable[[Array, stopping.Rule], Ended]:
    """No rule: ``n`` restarts, and the interval of the harness for a fixed number."""

    def run(logs: Array, _: stopping.Rule) -> Ended:
        found = statistics.ratio_interval(logs[:n])
        return n, found.low, found.high

    return run


SHIPPED = "shipped"
CANDIDATES: dict[str, Callable[[Array, stopping.Rule], Ended]] = {
    SHIPPED: at_looks(stopping.interval),
    "shipped, of medians of whole restarts": at_looks(stopping.interval),
    "shipped, of medians of pairs of blocks": at_looks(stopping.interval),
    "t at 99 % (restarts taken as unlike)": at_looks(plain(0.99)),
    "t at 95 % (naive)": at_looks(plain(0.95)),
    "Stein's two stages": stein,
    "10 restarts, fixed": fixed(10),
    "studentised bootstrap at 99 % from 20": at_looks(
        lambda logs: statistics.ratio_interval(logs, confidence=0.99)
    ),
}


# ---------------------------------------------------------------- the run


def simulate(
    name: str, draws: int, seed: int, candidates: tuple[str, ...] = tuple(CANDIDATES)
) -> list[dict[str, Any]]:
    """Run every candidate on the same draws of one generator."""
    rng = np.random.default_rng([seed, list(GENERATORS).index(name)])
    rows = {(c, q): [] for c in candidates for q in QUESTIONS}
    for begin in range(0, draws, 100):
        a, b = GENERATORS[name](rng, min(100, draws - begin))
        off = MEDIANS.get(name, 0.0)
        figures = {"whole": medians(a, b) - off, "pairs": pairs(a, b) - off}
        shipped = neighbours(a, b)
        for (candidate, question), ended in rows.items():
            which = next((k for k in figures if f"medians of {k}" in candidate), None)
            for logs in shipped if which is None else figures[which]:
                ended.append(CANDIDATES[candidate](logs, QUESTIONS[question]))
    out = []
    for (candidate, question), ended in rows.items():
        n, low, high = np.array(ended).T
        out.append(
            {
                "candidate": candidate,
                "question": question,
                "covered": float(np.mean((low <= 1) & (high >= 1))),
                "restarts": round(float(np.mean(n)), 1),
                "half_width": round(float(np.mean(high - low) / 2), 5),
            }
        )
    return out


def table(results: dict[str, Any]) -> str:
    """The Markdown page."""
    error = 196 * math.sqrt(0.05 * 0.95 / results["draws"])
    how = f"--draws {results['draws']} --seed {results['seed']}"
    lines = [
        "# Coverage of the interval on a ratio, stopping included",
        "",
        f"`python benchmarks/interval_coverage.py {how}`: {CLAIMED:.0%} is claimed, {PROMISED:.0%} promised.",
        f"A share of {results['draws']} draws is known to ±{error:.1f} points. In brackets: mean restarts",
        f"(at most {RESTARTS}), and half the mean interval.",
        "",
    ]
    for question in QUESTIONS:
        names = [n for n in GENERATORS if n in results["generators"]]
        lines += [
            f"## {question}",
            "",
            f"| | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for candidate in CANDIDATES:
            cells = []
            for name in names:
                row = next(
                    r
                    for r in results["generators"][name]
                    if (r["candidate"], r["question"]) == (candidate, question)
                )
                text = f"{100 * row['covered']:.1f} %"
                text = f"**{text}**" if candidate == SHIPPED else text
                cells.append(f"{text} ({row['restarts']:.0f}, ±{100 * row['half_width']:.2g} %)")
            lines.append(f"| {candidate} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def broken(results: dict[str, Any]) -> list[str]:
    """Where the shipped rule covers less than is promised."""
    return [
        f"{name}, {row['question']}: {row['covered']:.1%}"
        for name, rows in results["generators"].items()
        for row in rows
        if row["candidate"] == SHIPPED and row["covered"] < PROMISED
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Coverage of the interval on a ratio.")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(GENERATORS), help="generators, by name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the page from what is there")
    asked = parser.parse_args(argv)
    unknown = set(asked.only.split(",")) - set(GENERATORS)
    if unknown or asked.draws < 1:
        parser.error(f"unknown generator {sorted(unknown)}; known: {', '.join(GENERATORS)}"
                     if unknown else f"--draws is {asked.draws}, expected 1 or more")  # fmt: skip
    path = asked.out / "interval_coverage.json"
    results: dict[str, Any] = {"draws": asked.draws, "seed": asked.seed, "generators": {}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if asked.table or (before["draws"], before["seed"]) == (asked.draws, asked.seed):
            results = before
    for name in () if asked.table else asked.only.split(","):
        if name not in results["generators"]:
            results["generators"][name] = simulate(name, asked.draws, asked.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        print(f"{name}: done", file=sys.stderr, flush=True)
    (asked.out / "interval_coverage.md").write_text(table(results), encoding="utf-8")
    found = broken(results)
    print("\n".join(found) or "the shipped rule keeps what it promises everywhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
