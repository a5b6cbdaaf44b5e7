"""The export below float32: both networks converted, judged on validation images, and recorded.

    dense.int8.onnx model.int8.onnx      (.fp16.onnx), written by :mod:`mint_deploy.quantize`
    precision.json                       what was asked for, and a Quantized and an ExportedModel of each
    calibration.json                     the ranges, found again when the stage is done once more

The target says the precision, ``--precision`` overrides it. TensorRT before 11 takes fp16 as a flag of the build
(:mod:`mint_deploy.recipe`), so no file is written for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mint_deploy import files
from mint_deploy.artifacts import ExportedModel
from mint_deploy.errors import ConfigError
from mint_deploy.onnx_file import read_onnx
from mint_deploy.parity import compare_outputs
from mint_deploy.quantize import PRECISIONS, Quantized, quantize_file
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.task import judge_on, samples_of
from mint_deploy.recipe import dialect_of

if TYPE_CHECKING:
    from mint_deploy.job import Job
    from mint_deploy.target import Target

__all__ = ["FILES", "delivered", "in_the_file", "lower"]

#: images to calibrate on, of the training part; and at most so many to judge by, of validation
CALIBRATED, JUDGED = 512, 2000
#: samples for the largest relative error that is told
COMPARED = 16

_NETWORKS = {"dense": "dense", "slim": "model"}
#: all that may be written
FILES = (
    *(f"{stem}.{precision}.onnx" for precision in PRECISIONS for stem in _NETWORKS.values()),
    "precision.json",
    "calibration.json",
)


def in_the_file(target: Target) -> bool:
    """Whether the precision has to stand in the ONNX file: not where TensorRT takes it as a flag."""
    if target.precision != "fp16" or target.runtime != "tensorrt" or target.tensorrt is None:
        return target.precision in PRECISIONS
    try:
        return "fp16" not in dialect_of(target.tensorrt).weak
    except ConfigError:  # a release that is not known here
        return True


def lower(job: Job, exported: Mapping[str, ExportedModel]) -> dict[str, Quantized]:
    """Write both networks in the target's precision, or nothing where that is float32 or a flag.

    Args:
        job: the run; its ONNX files are written.
        exported: ``{"dense": ..., "slim": ...}``, those files.

    Returns:
        What was written, by network. A promise that cannot be held is a warning here and ``kept`` there.
    """
    target, run = job.target, job.run
    if not in_the_file(target):
        for name in FILES:
            (run / name).unlink(missing_ok=True)
        return {}
    splits, request = job.splits, job.request
    samples = samples_of(splits.train, CALIBRATED, seed=request.seed)
    judged = splits.validation.balanced(JUDGED, request.seed)
    found: dict[str, Quantized] = {}
    entries: dict[str, Any] = {}
    for label, model in exported.items():
        name = model.inputs[0].name

        def tell(done: float, total: float, note: str, label: str = label) -> None:
            job.progress.step(done, total, f"the {label} network in {target.precision}: {note}")

        found[label] = made = quantize_file(
            model.path,
            samples,
            out=run / f"{_NETWORKS[label]}.{target.precision}.onnx",
            target=target,
            precision=target.precision,
            calibration=request.calibration,
            evaluate=judge_on(judged, name=name, metric=job.metric),
            max_drop=request.int8_max_drop,
            cache=run / "calibration.json",
            threads=torch.get_num_threads(),
            progress=tell,
        )
        for text in (*([] if made.kept is not False else [made.verdict]), *made.doubts):
            job.progress.warn(f"the {label} network in {target.precision}: {text}")
        few = {name: samples[:COMPARED]}
        # by name: the record is the same in whatever folder the run lies
        entries[label] = {
            "quantized": dataclasses.replace(made, path=Path(made.path).name),
            "exported": _exported(made, model, few),
        }
    for name in set(FILES) - {"precision.json", "calibration.json"}:
        if name not in {Path(made.path).name for made in found.values()}:
            (run / name).unlink(missing_ok=True)
    body = {
        "precision": target.precision,
        "max_drop": request.int8_max_drop,
        "kept": _kept(found.values()),
        "networks": entries,
    }
    files.write_json(run / "precision.json", body, kind="Precision")
    return found


def delivered(run: Path, target: Target) -> dict[str, Path]:
    """Return the file of each network that the target gets: in its precision where that stands in the file."""
    tail = f".{target.precision}.onnx" if in_the_file(target) else ".onnx"
    return {label: run / f"{stem}{tail}" for label, stem in _NETWORKS.items()}


def _kept(made: Iterable[Quantized]) -> bool | None:
    """False where a promise is broken, None where one could not be judged."""
    states = [quantized.kept for quantized in made]
    if False in states:
        return False
    return None if None in states else True


def _exported(made: Quantized, source: ExportedModel, samples: Mapping[str, Any]) -> ExportedModel:
    """Describe the file as the float32 export describes its own; the error is against that file."""
    facts = read_onnx(made.path)
    found, expected = (Network(path).infer(samples) for path in (made.path, source.path))
    return ExportedModel(
        path=Path(made.path).name,
        opset=facts.opset,
        ir_version=facts.ir_version,
        inputs=facts.inputs,
        outputs=facts.outputs,
        sha256=made.sha256,
        bytes=made.bytes,
        max_error=max(compare_outputs(found, expected).values()),
        parity_batches=made.batches,
        metadata={**facts.metadata, "precision": made.precision},
    )
