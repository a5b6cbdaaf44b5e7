"""The command line: each command is a function here or in a neighbour, and calls one verb.

stdout carries the result, stderr the progress. Exit codes: 0 kept (also undecided), 1 a promise or
a baseline broken, 2 something the user can mend, 3 inconclusive under --strict, 70 our bug,
130 interrupted. At import time this needs typer and nothing heavy, so that help is immediate.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mint_deploy._version import __version__
from mint_deploy.cli import doctor, judge, look, measure, work
from mint_deploy.errors import Interrupted, MintDeployError, PromiseBroken

__all__ = ["COMMANDS", "app", "main"]


class _Commands(TyperGroup):
    """The commands in the order of the work; Ctrl-C anywhere is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compress a neural network, prove the cut, export it, and measure it on its device.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mint-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


#: name -> function, in the order of the help
COMMANDS: dict[str, Callable[..., None]] = {
    "compress": work.compress,
    "doctor": doctor.doctor,
    "score": work.score,
    **work.STAGE_COMMANDS,
    "bench": measure.bench,
    "compare": judge.compare,
    "inspect": look.inspect,
    "targets": look.targets,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the command line and exit; only our own bugs show a traceback."""
    try:
        app(prog_name="mint-deploy")
    except (MintDeployError, PromiseBroken, Interrupted) as error:
        kind = "" if isinstance(error, Interrupted) else "error: "
        print(f"{kind}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - told with its traceback, and exit code 70
        traceback.print_exc()
        print(
            "this is a bug in mint-deploy, not in what you asked for; please report it with the "
            "lines above",
            file=sys.stderr,
        )
        sys.exit(70)
