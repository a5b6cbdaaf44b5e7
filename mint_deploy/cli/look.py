"""The commands that only look: ``targets``, ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mint_deploy.cli import inspecting, plans, show
from mint_deploy.cli import options as o

__all__ = ["inspect", "targets"]


# ---------------------------------------------------------------- targets


def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One profile.", show_default=False)
    ] = None,
    json: o.Json = False,
) -> None:
    """List the devices, or show one profile with the source of each number."""
    from mint_deploy.target import load_target, target_names

    if name is None:
        profiles = [load_target(known) for known in target_names()]
        if json:
            show.print_json({"targets": profiles})
            return
        print(show.table([[p.name, p.family, p.runtime, p.description] for p in profiles]))
        return
    profile = load_target(name)
    if json:
        show.print_json(profile)
        return
    from mint_deploy.files import encode

    print(f"{profile.name}: {profile.description}")
    body = encode(profile)
    tables = ("sources", "power_modes", "promises")
    rows = [
        [key, str(value), profile.sources.get(key, "")]
        for key, value in body.items()
        if value is not None and key not in (*tables, "name", "description")
    ]
    print(show.table(rows))
    for key in ("power_modes", "promises"):
        for inner, value in body[key].items():
            source = profile.sources.get(f"{key}.{inner}", "")
            print(f"  {key}.{inner}: {value}  {source}".rstrip())


# ---------------------------------------------------------------- inspect


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of a run, or its folder.")],
    json: o.Json = False,
) -> None:
    """Say what a plan, an ONNX file, an engine or a bundle is, and where it came from."""
    found = inspecting.inspected(file)
    if json:
        show.print_json(found)
        return
    print(f"{file}: {found['what']}")
    if "ranking" in found:
        from mint_deploy.cli.ranking import say

        say(found["ranking"])
        return
    tables = plans.tables(found) if found["what"] == plans.WHAT else []
    rows = [[k, str(v)] for k, v in found.items() if k != "what" and v not in (None, "", {}, [])]
    print("\n\n".join([show.table(rows), *tables]))
