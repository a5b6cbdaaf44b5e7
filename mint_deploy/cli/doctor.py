"""``doctor``: what can be cut of a network, with a picture; what is installed; how quiet the machine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_deploy.cli import options as o
from mint_deploy.cli import show
from mint_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mint_deploy.graph import Graph
    from mint_deploy.overview import Overview

__all__ = ["doctor"]

#: layers named beside a group; the rest is counted
_NAMED = 3

Svg = Annotated[
    Path | None,
    typer.Option("--svg", help="Draw layers and groups of MODEL.", metavar="FILE.svg"),
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Read the groups off MODEL, and do not try a cut of each."),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds", help="With --machine: for how long to watch it (10).", show_default=False
    ),
]


def doctor(
    model: o.Model = None,
    weights: o.Weights = None,
    input: o.Input = None,  # noqa: A002 - the flag is called so
    target: o.Target = None,
    export_level: o.ExportLevel = None,
    attention: o.Attention = None,
    svg: Svg = None,
    fast: Fast = False,
    machine: Annotated[bool, typer.Option("--machine", help="How quiet this machine is.")] = False,
    seconds: Seconds = None,
    json: o.Json = False,
) -> None:
    """Say what can be cut and why the rest cannot; what is installed; how quiet the machine is."""
    if model is None and (svg is not None or fast):
        raise ConfigError(
            f"{'--fast' if svg is None else '--svg'} is about a network; name one: "
            "mint-deploy doctor MODEL"
        )
    if machine and model is not None:
        raise ConfigError(
            f"--machine looks at the machine alone, but MODEL is {model}; ask for one after the other"
        )
    if seconds is not None and not (machine and seconds > 0):
        raise ConfigError(
            f"--seconds is {seconds:g}; expected a number above 0, together with --machine"
        )
    if model is not None:
        _drawable(svg)
        graph, overview = _looked_at(
            model,
            weights,
            input,
            target or "cpu",
            exported=bool(export_level),
            probe=not fast,
            attention=attention or "heads",
        )
        if svg is not None:
            _draw(overview, svg)
        if json:
            show.print_json(_body(graph, overview))
        else:
            print(_text(overview))
    elif machine:
        from mint_deploy.cli import quiet

        quiet.machine(as_json=json, seconds=10.0 if seconds is None else seconds)
    else:
        _installation(as_json=json)


# ---------------------------------------------------------------- a network


def _looked_at(
    model: str,
    weights: str | None,
    sizes: str | None,
    target: str,
    *,
    exported: bool,
    attention: str,
    probe: bool,
) -> tuple[Graph, Overview]:
    import torch

    from mint_deploy.errors import ModelError
    from mint_deploy.models import load_model
    from mint_deploy.program_export import export_program
    from mint_deploy.settings import parse_input
    from mint_deploy.survey import survey
    from mint_deploy.target import load_target
    from mint_deploy.trace import trace

    chip = load_target(target)
    loaded = load_model(model, weights)
    shape = parse_input(sizes) if sizes else loaded.input_shape and (1, *loaded.input_shape)
    if not shape:
        raise ModelError(f"the input size of {model} is not known; give it as --input 1x3x32x32")
    example = torch.zeros(shape)
    network = export_program(loaded.model, example) if exported else loaded.model
    graph = trace(network, example, probe=probe, attention=attention)
    return graph, survey(graph, model=model, target=chip, probed=probe)


def _drawable(svg: Path | None) -> None:
    """Refuse a place where no picture can be written, before any work is done."""
    if svg is None:
        return
    if svg.suffix.lower() != ".svg":
        raise ConfigError(f"--svg is {svg}, expected a file whose name ends in .svg")
    if svg.is_dir():
        raise ConfigError(f"--svg is {svg}, which is a folder; name a file in it")
    if not svg.parent.is_dir():
        raise ConfigError(f"--svg is {svg}, but there is no folder {svg.parent}; make it first")


def _draw(overview: Overview, svg: Path) -> None:
    from mint_deploy.files import atomic
    from mint_deploy.report.dependency import picture

    drawn = picture(overview)
    try:
        with atomic(svg) as part:
            part.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write {svg}: {error.strerror or error}; name another file with --svg"
        ) from error


def _text(overview: Overview) -> str:
    """Return the table of the groups, with a line above it and the notes below."""
    from mint_deploy.report import words

    free = [g for g in overview.groups if g.status != "frozen"]
    head = ["group", "width", "widths for it", "MACs", "params", "leaves with, or why not"]
    rows = [
        [
            words.clip(g.name, 48),
            str(g.width),
            f"{g.least} to {g.width} by {g.step}" if g.widths else words.NOT_HERE,
            words.share(g.macs / max(1, overview.macs)),
            words.short(g.params),
            _note(overview, position),
        ]
        for position, g in enumerate(overview.groups)
    ]
    lines = [
        (
            f"{words.plain(overview.model)}: {len(overview.layers)} layers, "
            f"{words.short(overview.macs)} MACs, {words.short(overview.params)} parameters; widths for "
            f"{overview.target}, in steps of {overview.round_to}"
        ),
        (
            f"{len(free)} pruning groups can be cut ({len(overview.of_status('restricted'))} of them "
            f"restricted), in layers with {words.share(overview.cuttable_macs_share)} of the MACs; "
            f"{len(overview.of_status('frozen'))} are frozen"
        ),
        show.table([head, *rows]),
        *(f"note: {words.plain(note)}" for note in overview.notes),
    ]
    if not overview.probed:
        lines.append("note: no cut was tried (--fast)")
    return "\n".join(lines)


def _note(overview: Overview, position: int) -> str:
    """Return why a group stays or what its cut touches, and the layers that must follow it."""
    from mint_deploy.report import words

    group = overview.groups[position]
    said = [f"{group.status}: {words.plain(group.reason)}"] if group.reason else []
    others = [overview.layers[i].name for i in group.layers[1:]]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        said.append(f"with {', '.join(words.clip(n, 48) for n in others[:_NAMED])}{more}")
    return "; ".join(said)


def _body(graph: Graph, overview: Overview) -> dict[str, Any]:
    """Return what --json prints: groups and frozen by name, and the whole overview."""
    return {
        "groups": {
            name: {"size": g.size, "producers": g.producers, "consumers": g.consumers}
            for name, g in graph.groups.items()
        },
        "frozen": graph.frozen,
        "cost": graph.cost,
        "cuttable_macs_share": graph.cuttable_macs_share,
        "notes": graph.notes,
        "overview": overview,
    }


# ---------------------------------------------------------------- this machine


def _installation(*, as_json: bool) -> None:
    from mint_deploy import pipeline, plugins, target, trtexec
    from mint_deploy.models import zoo_names

    runtimes = {}
    for name in plugins.known("runtime"):
        plugin = plugins.load("runtime", name)
        why = plugin.missing()
        runtimes[name] = {"missing": why, "mend": getattr(plugin, "MEND", None) if why else None}
    program = trtexec.find()
    missing = None if program else "the program trtexec is not here; only boards need it"
    runtimes["trtexec"] = {"missing": missing, "mend": None if program else trtexec.MEND}
    found: dict[str, Any] = {
        "versions": pipeline.versions(),
        "cuda": _cuda(),
        "runtimes": runtimes,
        "criteria": plugins.known("criterion"),
        "estimators": plugins.known("estimator"),
        "models": zoo_names(),
        "targets": target.target_names(),
    }
    if as_json:
        show.print_json(found)
        return
    print("installed")
    print(show.table([[name, text] for name, text in found["versions"].items()]))
    print(f"  CUDA: {found['cuda'] or 'none seen by torch; training runs on the CPU'}")
    print("runtimes")
    for name, state in runtimes.items():
        mend = f"; to mend it: {state['mend']}" if state["mend"] else ""
        print(f"  {name:<14} {state['missing'] or 'ready'}{mend}")
    for kind in ("criteria", "estimators", "models", "targets"):
        print(f"{kind}\n  {', '.join(found[kind])}")


def _cuda() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
