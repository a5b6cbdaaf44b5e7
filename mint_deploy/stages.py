"""The stages of a run: what each reads, writes and depends on. What it does is in ``steps.py``.

Importing this loads nothing heavy: the command line needs the names for its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from mint_deploy.errors import UnknownName

__all__ = ["NAMES", "STAGES", "TRAINING", "Stage", "stage_named"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the work: the files it reads and writes, and the settings it depends on.

    ``repeat``: its command does it again on a finished run, because the outcome may differ.
    """

    name: str
    title: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    repeat: bool = False


_SOURCE = (
    "model",
    "weights",
    "data",
    "input",
    "export_level",
    "attention",
    "mean",
    "std",
    "resize",
    "seed",
)
_JSON = ("plan.json", "cut.json", "accuracy.json", "deploy.json", "comparison.json")
#: both networks, and where the target's precision stands in the file those of that precision
_FILES = tuple(
    f"{name}{tail}.onnx" for tail in ("", ".int8", ".fp16") for name in ("dense", "model")
)

STAGES = (
    Stage(
        name="prepare",
        title="load the network, the data and the target",
        writes=("target.toml", "dense.safetensors", "accuracy.json"),
        settings=(*_SOURCE, "metric", "target", "power_mode", "device", "workers"),
    ),
    Stage(
        name="sample",
        title="see what each layer reads",
        writes=("moments.npz",),
        settings=(*_SOURCE, "images", "criterion", "estimator", "lossless", "device", "workers"),
    ),
    Stage(
        name="score",
        title="rank the units",
        reads=("moments.npz",),
        writes=("scores.npz",),
        settings=("criterion", "estimator", "plan", "seed"),
    ),
    Stage(
        name="plan",
        title="choose what stays",
        reads=("scores.npz", "target.toml"),
        writes=("plan.json",),
        settings=("ratio", "params", "macs", "ignore", "round_to", "plan", "lossless"),
    ),
    Stage(
        name="cut",
        title="cut, and prove the cut",
        reads=("plan.json",),
        writes=(
            "plan.json",
            "cut.json",
            "overview.json",
            "checkpoints/cut.safetensors",
            "slim.safetensors",
        ),
        settings=("lossless", "seed"),
    ),
    Stage(
        name="repair",
        title="refit the weights that stay",
        reads=("plan.json", "moments.npz", "checkpoints/cut.safetensors"),
        writes=("checkpoints/repair.safetensors", "slim.safetensors"),
        settings=("recover", "seed"),
    ),
    Stage(
        name="recover",
        title="train what is left, and the control",
        reads=("plan.json", "checkpoints/repair.safetensors"),
        writes=("slim.safetensors", "accuracy.json"),
        settings=(
            "recover",
            "epochs",
            "lr",
            "distill",
            "loss",
            "metric",
            "seed",
            "device",
            "workers",
        ),
    ),
    Stage(
        name="export",
        title="write ONNX, compare with PyTorch, pack the bundle",
        reads=("plan.json", "slim.safetensors", "target.toml"),
        writes=(
            *_FILES,
            "model.pt2",
            "parity.npz",
            "deploy.json",
            "predicted.json",
            "precision.json",
            "calibration.json",
            "bundle",
            "bundle.tar.gz",
        ),
        settings=("pt2", "precision", "int8_max_drop", "calibration"),
    ),
    Stage(
        name="build",
        title="make an engine for this machine",
        reads=("model.onnx", "model.int8.onnx", "model.fp16.onnx", "target.toml"),
        writes=("engine.json", "engine.plan"),
    ),
    Stage(
        name="bench",
        title="measure dense and slim side by side",
        reads=(*_FILES, "target.toml"),
        writes=("measurements.jsonl", "comparison.json"),
        repeat=True,
    ),
    Stage(
        name="report",
        title="write the report",
        reads=(
            "scores.npz",
            *_JSON,
            "overview.json",
            "target.toml",
            "measurements.jsonl",
            "predicted.json",
        ),
        writes=("report.json", "report.md", "report.html"),
        settings=("max_accuracy_drop",),
        repeat=True,
    ),
)
NAMES = tuple(stage.name for stage in STAGES)

#: what a stage that is not finished keeps, to be taken up after a kill
TRAINING = ("checkpoints/recover.safetensors", "checkpoints/control.safetensors")


def stage_named(name: str) -> Stage:
    """Return the stage of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in NAMES:
        raise UnknownName("stage", name, NAMES)
    return STAGES[NAMES.index(name)]
