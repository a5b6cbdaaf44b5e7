"""A PyTorch model becomes one ONNX file that is proven to compute the same.

    copy the model, eval -> PyTorch's exporter -> names, versions, metadata -> checker
    -> ONNX Runtime against PyTorch on several batches -> renamed into place

What is written is read back: opset, IR version, names and shapes are those of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mint_deploy import files
from mint_deploy._version import __version__
from mint_deploy.artifacts import ExportedModel
from mint_deploy.errors import ExportMismatch, ModelError
from mint_deploy.face import Face
from mint_deploy.models import state_digest
from mint_deploy.onnx_file import OnnxFacts, batchnorm_left, finish, pin_outputs_, read_onnx, tidy_
from mint_deploy.parity import Arrays, Parity, compare_outputs
from mint_deploy.runtimes import DYNAMIC
from mint_deploy.target import Target, load_target
from mint_deploy.torch_onnx import convert

__all__ = ["export", "parity_of"]

#: a protobuf file ends at 2 GiB; a little is left for the graph
LARGEST_BYTES = 2**31 - 2**24
#: batch sizes that a file with an open batch is tried at
DYNAMIC_BATCHES = (1, 2, 8)
RANDOM_BATCHES = 3


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    target: Target | str,
    *,
    plan_digest: str = "",
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tolerance: float = 1e-4,
    parity_inputs: Any = None,
    dynamic_batch: bool = False,
    extra_metadata: Mapping[str, str] | None = None,
) -> ExportedModel:
    """Write ``model`` as one ONNX file and compare it with PyTorch in ONNX Runtime.

    Args:
        model: left as it is; a copy on the CPU in eval mode is exported.
        path: the file; it appears only after everything below has held.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, with at least
            one sample; the number of samples does not matter.
        target: pins opset, IR version and (unless ``dynamic_batch``) the batch.
        plan_digest: which cut this is; travels in the file.
        class_names: names of the outputs' entries; travel in the file.
        mean: per channel, of the normalisation that the inputs need; travels in the file.
        std: as ``mean``.
        tolerance: largest relative error allowed.
        parity_inputs: real samples, of the form of ``example_inputs``, ``[N, ...]`` each.
        dynamic_batch: leave the first dimension open, and try batches of 1, 2 and 8.
        extra_metadata: more texts that travel in the file.

    Raises:
        ExportMismatch: an output differs by more than ``tolerance``; no file is left.
        ModelError: PyTorch cannot export the model, it fails on the inputs, is not finite, is
            larger than one file can be, or became something else than standard ONNX.
        TargetError: the exporter does not write the opset that the target asks for.
    """
    target = load_target(target) if isinstance(target, str) else target
    face = Face(model, example_inputs, class_names)
    size = sum(t.numel() * t.element_size() for t in face.state_dict().values())
    if size > LARGEST_BYTES:
        raise ModelError(
            f"the weights take {size:,} bytes, and one ONNX file holds at most {LARGEST_BYTES:,}; "
            "cut the model further before it is exported"
        )
    # a batch of 1 among the examples would be taken for a constant
    batch = max(2, face.batch) if dynamic_batch else target.batch
    batches = DYNAMIC_BATCHES if dynamic_batch else (target.batch,) * RANDOM_BATCHES
    checks = list(_checks(face, batches, parity_inputs, batch))
    proto = convert(face, batch, target.opset, dynamic_batch)
    tidy_(proto)
    pin_outputs_(proto, _output_shapes(checks))
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in face.modules())  # noqa: SLF001  # the class of all BatchNorms has no public name
    metadata = {
        "mint_deploy.version": __version__,
        "mint_deploy.target": target.name,
        "mint_deploy.source_digest": state_digest(model),
        "mint_deploy.plan_digest": plan_digest,
        "mint_deploy.class_names": json.dumps(list(class_names)) if class_names else "",
        "mint_deploy.mean": json.dumps([float(v) for v in mean]) if mean is not None else "",
        "mint_deploy.std": json.dumps([float(v) for v in std]) if std is not None else "",
        "mint_deploy.batchnorm": batchnorm_left(proto) if norms else "",
        **(extra_metadata or {}),
    }
    content = finish(
        proto,
        opset=target.opset,
        ir_version=target.ir_version,
        metadata={key: value for key, value in metadata.items() if value},
    )
    with files.atomic(path) as part:
        part.write_bytes(content)
        facts = read_onnx(part)
        _check_facts(facts, face, target, None if dynamic_batch else target.batch)
        worst = _compare(part, checks, tolerance)
    return ExportedModel(
        path=os.fspath(path),
        opset=facts.opset,
        ir_version=facts.ir_version,
        inputs=facts.inputs,
        outputs=facts.outputs,
        sha256=files.sha256(path),
        bytes=Path(path).stat().st_size,
        max_error=worst,
        parity_batches=tuple(check.batch for check in checks),
        metadata=facts.metadata,
    )


def parity_of(
    networks: Mapping[str, nn.Module],
    samples: Any,
    *,
    class_names: Sequence[str] | None = None,
    tolerance: float = 1e-4,
) -> Parity:
    """Return ``samples`` and what PyTorch computes for them, under the names of the ONNX files.

    Args:
        networks: ``{"dense": model, "slim": model}``.
        samples: of the form of ``example_inputs`` in :func:`export`, ``[N, ...]`` each.
        class_names: as given to :func:`export` (they decide the output's name).
        tolerance: relative error that float32 may have on the board.

    Raises:
        ModelError: a network fails on the samples, or no output has one row per sample.
    """
    inputs: Arrays = {}
    outputs: dict[str, Arrays] = {}
    for label, model in networks.items():
        face = Face(model, samples, class_names)
        if not all(face.batched):
            raise ModelError("parity samples need inputs that all have the batch in front")
        inputs = face.arrays(face.example)
        rows = {k: v for k, v in face.run(inputs).items() if v.ndim and len(v) == face.batch}
        if not rows:
            raise ModelError("no output of the model has one row per sample; nothing to compare by")
        outputs[label] = rows
    return Parity(inputs=inputs, outputs=outputs, tolerance=tolerance)


# ---------------------------------------------------------------- what was written


def _check_facts(facts: OnnxFacts, face: Face, target: Target, batch: int | None) -> None:
    """Compare what the file says of itself with what was asked for; ``batch`` None: open."""
    wanted = (target.opset, target.ir_version)
    if (facts.opset, facts.ir_version) != wanted:
        raise ModelError(
            f"the file has opset {facts.opset} and IR version {facts.ir_version}; "
            f"the target asks for {wanted[0]} and {wanted[1]}"
        )
    names = (tuple(s.name for s in facts.inputs), tuple(s.name for s in facts.outputs))
    if names != (face.input_names, face.output_names):
        raise ModelError(
            f"the file has the inputs and outputs {names}; expected {face.input_names} and "
            f"{face.output_names}; an input that forward does not use must be left out"
        )
    for spec, has in zip(facts.inputs, face.batched, strict=True):
        if has and spec.shape[0] != (DYNAMIC if batch is None else batch):
            advice = "; the model fixes it: export it with a fixed batch" if batch is None else ""
            raise ModelError(
                f"input '{spec.name}' of the file has shape {spec.shape}, and a batch of "
                f"{batch or 'any size'} was asked for{advice}"
            )


@dataclass(frozen=True, slots=True)
class _Check:
    """One batch and what PyTorch computed for it before the exporter touched anything."""

    batch: int
    inputs: Arrays
    expected: Arrays


def _checks(face: Face, batches: Sequence[int], parity_inputs: Any, batch: int) -> Iterator[_Check]:
    """Yield seeded noise in each of ``batches``; in ``batch``, the example and the real samples."""
    for seed, size in enumerate(batches):
        noise = face.noise(size, seed)
        yield _Check(size, noise, face.run(noise))
    given = [face.arrays(face.sized(batch))]
    if parity_inputs is not None and all(face.batched):
        samples = face.samples(parity_inputs)
        count = min(len(value) for value in samples.values())
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            given.append({name: value[rows] for name, value in samples.items()})
    for inputs in given:
        yield _Check(batch, inputs, face.run(inputs))


def _output_shapes(checks: Sequence[_Check]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output; what differs from batch to batch is ``DYNAMIC``."""
    shapes = {}
    for name in checks[0].expected:
        dims = zip(*(check.expected[name].shape for check in checks), strict=True)
        shapes[name] = tuple(d[0] if len(set(d)) == 1 else DYNAMIC for d in dims)
    return shapes


def _compare(path: Path, checks: Sequence[_Check], tolerance: float) -> float:
    """Return the largest relative error of any output on any batch, or raise ExportMismatch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the exported file: {error}") from error
    worst = 0.0
    for check in checks:
        try:
            found = session.run(list(check.expected), check.inputs)
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime fails on the exported file at batch {check.batch}: {error}"
            ) from error
        errors = compare_outputs(dict(zip(check.expected, found, strict=True)), check.expected)
        for name, wrong in errors.items():
            if not wrong <= tolerance:
                raise ExportMismatch(
                    name, wrong, tolerance, advice=f"at batch {check.batch}; the file was not kept"
                )
            worst = max(worst, wrong)
    return worst
