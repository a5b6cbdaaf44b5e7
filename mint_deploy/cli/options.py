"""Every flag of the command line, written once; a command takes those that make sense for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

_WHAT = "What"
_BUDGET = "Budget (one of; default --macs 0.5)"
_METHOD = "Method"
_RECOVERY = "Recovery"
_DELIVERY = "Delivery"
_DATA = "Data"
_RUNNING = "Running"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> OptionInfo:
    option: OptionInfo = typer.Option(
        *names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return option


# ---------------------------------------------------------------- what is compressed, for what

Model = Annotated[
    str | None,
    typer.Argument(
        help="A zoo name, package.module:factory or path/to/file.py:factory; none: the demo.",
        metavar="MODEL",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    _option(_WHAT, "A .safetensors, .th or .pt file.", "--weights", metavar="FILE"),
]
Data = Annotated[
    str | None,
    _option(
        _WHAT,
        "digits, cifar10:PATH, imagefolder:PATH, npz:PATH or file.py:factory.",
        "--data",
        metavar="SPEC",
    ),
]
Input = Annotated[
    str | None,
    _option(_WHAT, "Sizes with the batch.", "--input", metavar="1x3x32x32"),
]
ExportLevel = Annotated[
    bool | None,
    _option(
        _WHAT,
        "Cut the exported program: numbers written in the code adapt, too.",
        "--export-level",
    ),
]
Attention = Annotated[
    str | None,
    _option(
        _WHAT,
        "Whether whole heads leave, or the width of each.",
        "--attention",
        metavar="heads|width",
    ),
]
Target = Annotated[
    str | None,
    _option(_WHAT, "A name of `targets`, or a .toml.", "--target", metavar="NAME|FILE"),
]
PowerMode = Annotated[
    str | None,
    _option(_WHAT, "One of the target's modes.", "--power-mode", metavar="NAME"),
]

# ---------------------------------------------------------------- how much, and the promise

Ratio = Annotated[
    float | None,
    _option(
        _BUDGET,
        "Fraction of the units to remove.",
        "--ratio",
    ),
]
Params = Annotated[
    float | None,
    _option(
        _BUDGET,
        "Fraction of the parameters to keep.",
        "--params",
    ),
]
Macs = Annotated[
    float | None,
    _option(
        _BUDGET,
        "Fraction of the multiply-adds to keep.",
        "--macs",
    ),
]
Plan = Annotated[
    str | None,
    _option(
        _BUDGET,
        "Replay a plan.json, edited or not, instead of choosing.",
        "--plan",
        metavar="FILE",
    ),
]
MaxDrop = Annotated[
    float | None,
    _option(
        _BUDGET,
        "Promise: points lost at most on held-out data; broken: exit code 1.",
        "--max-accuracy-drop",
        metavar="POINTS",
    ),
]

# ---------------------------------------------------------------- method

Criterion = Annotated[
    str | None,
    _option(
        _METHOD,
        "mint, magnitude, random.",
        "--criterion",
    ),
]
Estimator = Annotated[
    str | None,
    _option(
        _METHOD,
        "For mint: gaussian.",
        "--estimator",
    ),
]
Images = Annotated[
    int | None,
    _option(
        _METHOD,
        "Images to sample for scoring: 1000.",
        "--images",
    ),
]
Ignore = Annotated[
    list[str] | None,
    _option(_METHOD, "A layer to leave alone (repeatable).", "--ignore", metavar="LAYER"),
]
RoundTo = Annotated[
    int | None,
    _option(
        _METHOD,
        "Widths are multiples of this; default: the target's.",
        "--round-to",
    ),
]

Lossless = Annotated[
    bool | None,
    _option(
        _METHOD,
        "Units that do nothing leave first.",
        "--lossless/--no-lossless",
    ),
]

# ---------------------------------------------------------------- recovery

Recover = Annotated[
    str | None,
    _option(_RECOVERY, "How far.", "--recover", metavar="none|bn|refit|train"),
]
Epochs = Annotated[
    float | None,
    _option(
        _RECOVERY,
        "Passes over the data.",
        "--epochs",
    ),
]
Rate = Annotated[
    float | None,
    _option(
        _RECOVERY,
        "Highest learning rate.",
        "--lr",
    ),
]
Distill = Annotated[
    bool | None,
    _option(
        _RECOVERY,
        "Learn from the dense network.",
        "--distill/--no-distill",
    ),
]

# ---------------------------------------------------------------- delivery

Precision = Annotated[
    str | None,
    _option(
        _DELIVERY,
        "Of the file that is delivered; default: the target's.",
        "--precision",
        metavar="fp32|fp16|int8",
    ),
]
Int8Drop = Annotated[
    float | None,
    _option(
        _DELIVERY,
        "Points that it may cost; sensitive layers stay in float: 0.5.",
        "--int8-max-drop",
        metavar="POINTS",
    ),
]
Calibration = Annotated[
    str | None,
    _option(
        _DELIVERY,
        "How int8 finds the ranges of activations: minmax.",
        "--calibration",
        metavar="minmax|percentile|entropy",
    ),
]

# ---------------------------------------------------------------- data

Mean = Annotated[str | None, _option(_DATA, "One number a channel.", "--mean", metavar="X,Y,Z")]
Std = Annotated[str | None, _option(_DATA, "One number a channel.", "--std", metavar="X,Y,Z")]
Resize = Annotated[
    int | None,
    _option(
        _DATA,
        "Images to this size.",
        "--resize",
    ),
]

Loss = Annotated[
    str | None,
    _option(_DATA, "What training minimises.", "--loss", metavar="FILE.PY:NAME"),
]
Metric = Annotated[
    str | None,
    _option(_DATA, "What counts as right, 0 to 1.", "--metric", metavar="FILE.PY:NAME"),
]

# ---------------------------------------------------------------- running

Pt2 = Annotated[
    bool | None,
    _option(_RUNNING, "Write model.pt2, too: PyTorch's own, without pickles.", "--pt2"),
]
Out = Annotated[
    str | None,
    _option(_RUNNING, "Run folder: runs/<model>-<target>.", "--out", metavar="DIR"),
]
Resume = Annotated[
    bool,
    _option(
        _RUNNING,
        "Take up a stopped run.",
        "--resume",
    ),
]
Force = Annotated[
    bool,
    _option(
        _RUNNING,
        "Throw an existing run away and begin anew.",
        "--force",
    ),
]
DryRun = Annotated[
    bool,
    _option(
        _RUNNING,
        "Say what would be done, and do nothing.",
        "--dry-run",
    ),
]
Until = Annotated[
    str | None, _option(_RUNNING, "Stop after this stage.", "--until", metavar="STAGE")
]
Seed = Annotated[
    int | None,
    _option(
        _RUNNING,
        "Of everything random: 0.",
        "--seed",
    ),
]
Workers = Annotated[
    int | None,
    _option(
        _RUNNING,
        "CPU threads for PyTorch: all cores.",
        "--workers",
    ),
]
Device = Annotated[str | None, _option(_RUNNING, "Where to train.", "--device", metavar="cpu|cuda")]
Config = Annotated[
    Path | None,
    _option(_RUNNING, "Default: mint.toml here.", "--config", metavar="FILE"),
]
Json = Annotated[
    bool,
    _option(
        _RUNNING,
        "One JSON object on stdout, progress on stderr.",
        "--json",
    ),
]
Quiet = Annotated[
    bool,
    _option(
        _RUNNING,
        "No progress.",
        "--quiet",
    ),
]

Run = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", show_default=False)]
