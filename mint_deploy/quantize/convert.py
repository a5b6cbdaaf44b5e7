"""A float32 ONNX file becomes one of lower precision that holds its promise, or says why it cannot.

    read, check the samples -> calibrate (or find it in the cache) -> convert all -> judge
    -> where too much is lost: rank the layers, leave the worst in float32 -> compare the outputs -> write

No PyTorch model is needed, and no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mint_deploy import files, onnx_wire
from mint_deploy._version import __version__
from mint_deploy.errors import ConfigError, UnknownName
from mint_deploy.quantize import half, qdq
from mint_deploy.quantize.calibration import DEFAULT, Cache, Progress, calibrate, calibration_key
from mint_deploy.quantize.fidelity import batches_of
from mint_deploy.quantize.hold import Maker, hold
from mint_deploy.quantize.judge import Evaluate, Judge
from mint_deploy.quantize.network import Arrays, Network
from mint_deploy.quantize.samples import ENOUGH, Samples, checked
from mint_deploy.quantize.schemes import SCHEMES, scheme_for
from mint_deploy.quantize.source import Source, read_source
from mint_deploy.target import Target, load_target
from mint_deploy.values.precision import Calibration, FloatLayer, Quantized

__all__ = ["PRECISIONS", "quantize_file"]

PRECISIONS = ("int8", "fp16")
#: samples that layers are ranked by, and that outputs are compared on
RANKED, COMPARED = 16, 64
#: so much worse may ONNX Runtime's own kernels be here than the arithmetic that the file asks for
TOLERATED_DB = 3.0


def quantize_file(
    path: str | os.PathLike[str],
    samples: Samples,
    *,
    out: str | os.PathLike[str] | None = None,
    target: Target | str = "cpu",
    precision: str = "int8",
    scheme: str | None = None,
    calibration: str = DEFAULT,
    evaluate: Evaluate | None = None,
    held_out: Samples | None = None,
    max_drop: float | None = 0.5,
    keep_float: Sequence[str] = (),
    float_borders: bool = True,
    cache: str | os.PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Quantized:
    """Write ``path`` in lower precision and say what that cost.

    Args:
        path: a float32 ONNX file.
        samples: real ones to calibrate on, as the network takes them (:mod:`mint_deploy.quantize.samples`).
        out: the file; default: ``model.onnx`` becomes ``model.int8.onnx`` beside it.
        target: decides the scheme.
        precision: ``int8`` or ``fp16``.
        scheme: one of ``SCHEMES`` instead of the target's (int8).
        calibration: ``minmax``, ``percentile`` or ``entropy`` (int8).
        evaluate: the task's measure (:mod:`mint_deploy.quantize.judge`); None: agreement with the float32
            network.
        held_out: samples for that agreement; None: those of the calibration, which flatters a little.
        max_drop: points that may be lost; None: convert everything, whatever it costs.
        keep_float: names of layers that stay float32 whatever happens.
        float_borders: inputs and outputs of an fp16 file stay float32.
        cache: a file that keeps calibrations, found again by what they depend on.
        threads: compute threads.
        progress: called with what is done, the whole, and a note; may raise to stop, and nothing is left then.

    Returns:
        What was written. Where ``max_drop`` cannot be held, ``kept`` is False and ``verdict`` says what to do.

    Raises:
        ConfigError: a setting that makes no sense, or scores that are none.
        DataError: samples of the wrong shape or type, or too few.
        ModelError: a file that cannot be read or converted.
        UnknownName: no such precision, scheme, method or layer.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise ConfigError(f"the drop allowed is {max_drop} points; expected 0 to 100")
    final = Path(out) if out is not None else Path(path).with_suffix(f".{precision}.onnx")
    if final.resolve() == Path(path).resolve():
        raise ConfigError(f"{final} is the float32 file itself; choose another name to write")
    chosen = scheme or scheme_for(load_target(target) if isinstance(target, str) else target).name
    if chosen not in SCHEMES:
        raise UnknownName("scheme", chosen, SCHEMES)
    source = read_source(path)
    reference = Network(source.bytes(), threads=threads)
    given = checked(samples, reference.inputs)
    judged = given
    if held_out is not None:
        judged = checked(held_out, reference.inputs, what="held-out samples")
    ranges = _Ranges(source, onnx_wire.digest(path), reference, given, cache, threads, progress)
    if precision == "int8":
        maker = _int8(source, chosen, calibration, ranges)
    else:
        maker = _fp16(source, ranges, float_borders)
    fixed = _fixed(source, maker, keep_float)
    judge = Judge(reference, evaluate, judged)
    outcome = hold(
        maker,
        source,
        reference,
        judge,
        max_drop,
        always=[layer.name for layer in fixed],
        samples=_first(given, RANKED),
        threads=threads,
        progress=progress,
    )
    doubts = _doubts(ranges.count, flattered=evaluate is None and judge.able and held_out is None)
    some = _first(judged, COMPARED)
    expected = reference.infer(some)
    snr, batches = batches_of(Network(outcome.content, threads=threads), expected, some)
    if precision == "int8":
        doubts += _here(outcome.content, expected, some, min(snr.values(), default=0.0), threads)
    floats = (*fixed, *outcome.floats)
    about = {
        "scheme": maker.scheme,
        "calibration": maker.calibration.method,
        "samples": ranges.count,
        "float_layers": [layer.name for layer in floats],
        "source_sha256": ranges.sha256,
        "written_by": f"mint-deploy {__version__}",
        **maker.settings,
    }
    with files.atomic(final) as part:
        part.write_bytes(_noted(outcome.content, precision, about))
    return Quantized(
        path=os.fspath(final),
        precision=precision,
        scheme=maker.scheme,
        sha256=files.sha256(final),
        bytes=final.stat().st_size,
        source_sha256=ranges.sha256,
        source_bytes=Path(path).stat().st_size,
        calibration=maker.calibration.method,
        calibration_key=maker.calibration.key,
        samples=ranges.count,
        layers=len(maker.layers),
        float_layers=floats,
        float_macs=_share(source, {layer.name for layer in floats}),
        before=judge.before,
        after=outcome.after,
        max_drop=max_drop,
        kept=outcome.kept,
        verdict=outcome.verdict,
        evaluations=judge.evaluations,
        snr_db=snr,
        batches=batches,
        damage=outcome.damage,
        settings=maker.settings,
        doubts=tuple(doubts),
    )


# ---------------------------------------------------------------- the two precisions


class _Ranges:
    """Calibrates a source on its samples, or finds that it was done before."""

    def __init__(
        self,
        source: Source,
        sha256: str,
        network: Network,
        samples: Arrays,
        cache: str | os.PathLike[str] | None,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.sha256, self.count = sha256, min(len(value) for value in samples.values())
        self._source, self._batch, self._samples = source, network.batch, samples
        self._cache, self._threads, self._progress = Cache(cache), threads, progress

    def __call__(self, method: str, symmetric: bool, operators: Sequence[str]) -> Calibration:
        key = calibration_key(self.sha256, self._samples, method, symmetric, operators)
        found = self._cache.get(key)
        if found is None:
            found = calibrate(
                self._source.bytes(),
                self._samples,
                key=key,
                method=method,
                symmetric=symmetric,
                operators=operators,
                batch=self._batch,
                threads=self._threads,
                progress=self._progress,
            )
            self._cache.put(found)
        return found


def _int8(source: Source, name: str, method: str, ranges: _Ranges) -> Maker:
    scheme = SCHEMES[name]
    found = ranges(method, scheme.symmetric, scheme.watched)

    def make(floats: Collection[str]) -> bytes:
        return qdq.place(source, found, scheme, floats=floats)

    def only(layer: str) -> bytes:
        return qdq.place(source, found, scheme, only=layer)

    return Maker(
        scheme=name,
        layers=source.nodes(scheme.layers),
        fixed=(),
        calibration=found,
        settings=dict(scheme.settings()),
        make=make,
        only=only,
    )


def _fp16(source: Source, ranges: _Ranges, float_borders: bool) -> Maker:
    every = tuple(sorted({node.op_type for node in source.model.graph.node}))
    found = ranges("minmax", False, every)

    def make(floats: Collection[str]) -> bytes:
        return half.halve(source, floats=floats, float_borders=float_borders)

    def only(layer: str) -> bytes:
        return half.halve(source, only=layer, float_borders=float_borders)

    return Maker(
        scheme="float16",
        layers=source.nodes(every),
        fixed=half.too_large(source, found),
        calibration=found,
        settings={
            "weights": "float16",
            "activations": "float16",
            "borders": "float32" if float_borders else "float16",
        },
        make=make,
        only=only,
    )


def _fixed(source: Source, maker: Maker, keep_float: Sequence[str]) -> tuple[FloatLayer, ...]:
    """Return the layers that stay float32 whatever the search finds."""
    operators = {node.name: node.op_type for node in source.model.graph.node}
    for name in keep_float:
        if name not in operators:
            raise UnknownName("layer", name, operators)
    found = {layer.name: layer for layer in maker.fixed}
    for name in keep_float:
        layer = FloatLayer(name=name, operator=operators[name], reason="asked for")
        found.setdefault(name, layer)
    return tuple(found.values())


# ---------------------------------------------------------------- what is said of it


def _doubts(count: int, *, flattered: bool) -> list[str]:
    doubts = []
    if count < ENOUGH:
        text = f"{count} calibration samples; ranges are to be trusted from about {ENOUGH} on"
        doubts.append(text)
    if flattered:
        doubts.append("judged on the calibration samples; give held_out, or evaluate with labels")
    return doubts


def _here(
    content: bytes, expected: Arrays, samples: Arrays, exact: float, threads: int
) -> list[str]:
    """Doubt this machine where its kernels compute something else than the file asks for."""
    runtime = Network(content, threads=threads, as_runtime=True)
    here = min(batches_of(runtime, expected, samples)[0].values(), default=exact)
    if here >= exact - TOLERATED_DB:
        return []
    text = (
        f"ONNX Runtime's kernels on this machine reach {here:.1f} dB where the file's arithmetic has {exact:.1f}: "
        "8-bit products overflow here (x86 without VNNI), so this file is for another machine"
    )
    return [text]


def _first(samples: Arrays, count: int) -> Arrays:
    return {name: value[:count] for name, value in samples.items()}


def _share(source: Source, floats: Collection[str]) -> float | None:
    total = sum(source.macs.values())
    return sum(source.macs.get(name, 0) for name in floats) / total if total else None


def _noted(content: bytes, precision: str, about: dict[str, Any]) -> bytes:
    """Return the file with what was done to it among its metadata."""
    import onnx

    model = onnx.load_from_string(content)
    notes = {p.key: p.value for p in model.metadata_props}
    notes["mint_deploy.precision"] = precision
    notes["mint_deploy.quantization"] = json.dumps(about, sort_keys=True)
    del model.metadata_props[:]
    for key, value in sorted(notes.items()):
        model.metadata_props.add(key=key, value=value)
    written: bytes = model.SerializeToString(deterministic=True)
    return written
