"""The program that travels with a bundle: what is here, does it compute the same, how fast is it.

    python3 mint_deploy_device.pyz probe                 this machine, as a record
    python3 mint_deploy_device.pyz build  [BUNDLE]       an engine for this machine
    python3 mint_deploy_device.pyz verify [BUNDLE]       hashes, and outputs against PyTorch's
    python3 mint_deploy_device.pyz bench  [BUNDLE]       dense and slim in turns

Needs Python 3.10 with numpy and onnxruntime; nothing is installed. BUNDLE is the folder that holds
deploy.json; it may be left out where this program lies in it, or in the current folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_deploy.errors import (
    ConfigError,
    ExportMismatch,
    InternalError,
    MintDeployError,
    RuntimeMissing,
)

if TYPE_CHECKING:  # this file itself must load on an older Python, to say that it is too old
    from mint_deploy.artifacts import Comparison, ExportedModel, Measurement

    Answer = dict[str, Any]

__all__ = ["MODULES", "main"]

#: what the zip is made of: this program and everything it can reach, inside mint_deploy
MODULES = (
    "__init__.py",
    "_advice.py",
    "_arrived.py",
    "_bench_base.py",
    "_bench_child.py",
    "_bench_cores.py",
    "_bench_energy.py",
    "_bench_files.py",
    "_bench_loop.py",
    "_bench_streams.py",
    "_bench_sweep.py",
    "_bench_turns.py",
    "_bench_worker.py",
    "_blocks.py",
    "_cgroup.py",
    "_machine_board.py",
    "_machine_cpu.py",
    "_machine_gpu.py",
    "_machine_versions.py",
    "_machine_where.py",
    "_nvml.py",
    "_onnx_head.py",
    "_ort_cache.py",
    "_ort_providers.py",
    "_ort_session.py",
    "_rails.py",
    "_signal.py",
    "_student.py",
    "_sysfs.py",
    "_target_checks.py",
    "_torch_hold.py",
    "_trt_api.py",
    "_trt_bench.py",
    "_trt_build.py",
    "_trt_cuda.py",
    "_trt_dialects.py",
    "_trt_exports.py",
    "_trt_here.py",
    "_trt_log.py",
    "_trt_session.py",
    "_unsupported.py",
    "_version.py",
    "artifacts.py",
    "bench.py",
    "device.py",
    "digits.py",
    "doubts.py",
    "engine_file.py",
    "errors.py",
    "files.py",
    "looks.py",
    "machine.py",
    "manifest.py",
    "measurement_file.py",
    "onnx_wire.py",
    "parity.py",
    "plugins.py",
    "recipe.py",
    "runtimes/__init__.py",
    "runtimes/null.py",
    "runtimes/onnxruntime.py",
    "runtimes/onnxruntime_cuda.py",
    "runtimes/onnxruntime_tensorrt.py",
    "runtimes/openvino.py",
    "runtimes/pytorch.py",
    "runtimes/tensorrt.py",
    "sensors.py",
    "statistics.py",
    "stopping.py",
    "target.py",
    "trtexec.py",
    "values/__init__.py",
    "values/basic.py",
    "values/delivery.py",
    "values/measuring.py",
    "values/planning.py",
    "values/scoring.py",
)
_LOWEST = (3, 10)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 well, 2 something to mend, 70 our bug, 130 interrupted."""
    raise SystemExit(_main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        _check_python()
        answer, lines = arguments.run(arguments)
        if arguments.json:
            import json

            from mint_deploy import files

            print(json.dumps(files.encode(answer), indent=1, allow_nan=False))
        else:
            print("\n".join(lines))
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read the output has seen enough (| head); nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MintDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:  # noqa: BLE001  the last resort: shown whole, as our bug
        traceback.print_exc()
        return InternalError.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    program = Path(sys.argv[0]).name or "mint_deploy_device.pyz"
    parser = argparse.ArgumentParser(
        prog=program, description="Build, verify and measure a bundle."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        command.set_defaults(run=run)
        return command

    add("probe", _probe, "Describe this machine.")
    build = add("build", _build, "Make an engine for this machine.")
    verify = add("verify", _verify, "Check hashes, and outputs against PyTorch's.")
    bench = add("bench", _bench, "Measure dense and slim in turns.")
    for command in (build, verify, bench):
        command.add_argument("bundle", nargs="?", type=Path, help="the folder with deploy.json")
        command.add_argument("--runtime", help="another runtime than the target's")
    build.add_argument("--precision", help="another precision than the target's")
    bench.add_argument("--restarts", type=int, default=5, help="process restarts at least")
    bench.add_argument("--seconds", type=float, default=60.0, help="time for everything")
    bench.add_argument("--threads", type=int, help="compute threads; default: the target's")
    return parser


def _check_python() -> None:
    if sys.version_info < _LOWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        raise RuntimeMissing("python", f"this is Python {found}, 3.10 or newer is needed",
                             "sudo apt-get install python3.10")  # fmt: skip
    try:
        import numpy as np  # noqa: F401  all that follows needs it
    except ImportError as error:
        raise RuntimeMissing("numpy", str(error), "sudo apt-get install python3-numpy") from error


# ---------------------------------------------------------------- the commands


def _probe(arguments: argparse.Namespace) -> tuple[Answer, list[str]]:  # noqa: ARG001  takes none
    from mint_deploy import files
    from mint_deploy.doubts import doubts
    from mint_deploy.machine import probe

    machine = probe()
    against = doubts((), machine)
    record = files.encode(machine)
    lines = [f"{key:<16} {value}" for key, value in record.items() if key != "details"]
    lines += [f"not readable     {k}: {why}" for k, why in machine.details["nulls"].items()]
    lines += [f"doubt: {text}" for text in against]
    return {"machine": record, "doubts": list(against)}, lines


def _build(arguments: argparse.Namespace) -> tuple[Answer, list[str]]:
    from mint_deploy import plugins
    from mint_deploy._arrived import Bundle

    bundle = Bundle(arguments.bundle)
    target = dict(bundle.target)
    runtime = arguments.runtime or str(target.get("runtime", "onnxruntime"))
    if arguments.precision:
        target["precision"] = arguments.precision
    name = "slim" if "slim" in bundle.models else "dense"
    path = bundle.path(name)
    engine = plugins.load("runtime", runtime).build(path, target, bundle.folder)
    built = " ".join(f"{k} {v}" for k, v in engine.builder.items())
    lines = [f"{name}: {Path(engine.path).name} for {runtime}, {engine.precision}, by {built}"]
    return {"network": name, "engine": engine}, lines


def _verify(arguments: argparse.Namespace) -> tuple[Answer, list[str]]:
    from mint_deploy import _signal, plugins
    from mint_deploy._arrived import Bundle
    from mint_deploy.parity import read_parity

    bundle = Bundle(arguments.bundle)
    lines = bundle.check()
    parity = read_parity(bundle.folder / "parity.npz")
    runtime, notes = bundle.runtime(arguments.runtime)
    lines += notes
    plugin = plugins.load("runtime", runtime)
    errors: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for to in bundle.checks(runtime):
        batch = bundle.batch(to.network)
        advice = f"'{to.name}' in {runtime} on this machine; try another runtime or version"
        with plugin.runner(plugin.build(bundle.file(to.model), to.target, None)) as live:
            if to.floor_db is None:
                worst = errors[to.name] = parity.check(to.network, live.infer, batch=batch)
                allowed = parity.tolerance
                line = f"largest relative error {worst:.1e} of {allowed:.0e} allowed"
            else:
                found = _signal.measured_db(parity, to.network, live.infer, batch=batch)
                ratios[to.name] = found
                # noise over signal, both as root mean squares
                worst, allowed = (10 ** (-db / 20) for db in (found, to.floor_db))
                line = f"signal to noise {found:.1f} dB, {to.floor_db:.1f} dB or more expected"
                advice = f"{line}: {advice}"
        if not worst <= allowed:
            raise ExportMismatch(_outputs(to.model), worst, allowed, advice=advice)
        lines.append(f"{to.name}: {line}")
    body = {"runtime": runtime, "errors": errors, "tolerance": parity.tolerance, "snr_db": ratios}
    return body, lines


def _outputs(model: ExportedModel) -> str:
    return ", ".join(spec.name for spec in model.outputs)


def _bench(arguments: argparse.Namespace) -> tuple[Answer, list[str]]:
    from mint_deploy import _trt_bench
    from mint_deploy._arrived import Bundle
    from mint_deploy.bench import MeasuringStopped, interleave, save

    bundle = Bundle(arguments.bundle)
    batches = {bundle.batch(name) for name in bundle.models}
    if len(batches) > 1:
        raise ConfigError(f"dense and slim have different batches {sorted(batches)}; export anew")
    paths = {name: bundle.path(name) for name in bundle.models}
    how: Answer = {
        "batch": batches.pop(),
        "restarts": arguments.restarts,
        "budget_s": arguments.seconds,
        "progress": _teller(),
    }
    lines: list[str] = []
    try:
        if _trt_bench.stands_in(arguments.runtime or str(bundle.target.get("runtime"))):
            lines = ["note: no Python package tensorrt here; built and measured through trtexec"]
            fed = {name: model.inputs for name, model in bundle.models.items()}
            measured, compared = _trt_bench.through_trtexec(
                paths, target=bundle.target, inputs=fed, **how
            )
        else:
            runtime, lines = bundle.runtime(arguments.runtime)
            measured, compared = interleave(
                paths,
                runtime=runtime,
                threads=arguments.threads or int(bundle.target.get("threads", 1)),
                target=bundle.target_in(runtime),
                **how,
            )
    except MeasuringStopped as stopped:
        save(bundle.folder, stopped.measured, stopped.compared)
        print("\n".join(_told(stopped.measured, stopped.compared)), flush=True)
        print(f"what was measured is kept in {bundle.folder}", file=sys.stderr)
        raise
    save(bundle.folder, measured, compared)
    lines += _told(measured, compared)
    return {"measurements": measured, "comparisons": compared}, lines


def _told(measured: Sequence[Measurement], compared: Sequence[Comparison]) -> list[str]:
    from mint_deploy import digits, statistics

    lines = []
    for m in measured:
        samples = [ns for restart in m.restarts_ns for ns in restart]
        tail = statistics.percentile(samples, 99)
        shown = digits.duration(tail.value) if tail.value is not None else f"none ({tail.reason})"
        lines.append(
            f"{m.task.label:<6} median {digits.duration(statistics.median(samples))}, p99 {shown}, "
            f"{len(samples)} calls in {len(m.restarts_ns)} restarts"
        )
    lines += [
        f"{c.b} takes {digits.figure(c.ratio, c.low, c.high)} of {c.a}'s time, "
        f"{c.confidence:.0%} interval over {c.restarts} restarts"
        for c in compared
    ]
    against = [text for m in measured for text in m.doubts]
    against += [text for c in compared for text in c.doubts]
    return lines + [f"doubt: {text}" for text in dict.fromkeys(against)]


def _teller() -> Callable[[float, float, str], None] | None:
    """A line that moves, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def tell(done: float, total: float, note: str) -> None:
        end = "\r" if done < total else "\n"
        print(f"{done / total:4.0%} {note:<60}", end=end, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    main()
