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
    DataError,
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
    "_bench_base.py",
    "_bench_child.py",
    "_bench_cores.py",
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
    "_student.py",
    "_sysfs.py",
    "_torch_hold.py",
    "_trt_api.py",
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
_NETWORKS = ("dense", "slim")
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


# ---------------------------------------------------------------- the bundle


class _Bundle:
    """A folder with deploy.json, the ONNX files it names, and parity.npz."""

    def __init__(self, folder: Path | None) -> None:
        from mint_deploy import files
        from mint_deploy.artifacts import ExportedModel

        # in the zip the program's own path is the zip: its folder is the bundle
        here = [folder] if folder is not None else [Path(sys.argv[0]).resolve().parent, Path.cwd()]
        self.folder = next((f for f in here if (f / "deploy.json").is_file()), here[0])
        if not (self.folder / "deploy.json").is_file():
            raise DataError(
                f"{self.folder} is not a bundle: it holds no deploy.json; name the folder that "
                "'mint-deploy compress' or 'mint-deploy export' wrote"
            )
        self.deploy = files.read_json(self.folder / "deploy.json", kind="Deploy")
        self.target: dict[str, Any] = self.deploy.get("target") or {}
        self.models: dict[str, ExportedModel] = {
            name: files.decode(ExportedModel, self.deploy[name], where=f"deploy.json: {name}")
            for name in _NETWORKS
            if self.deploy.get(name)
        }
        if not self.models:
            raise DataError(f"{self.folder / 'deploy.json'} names no network; export the run anew")

    def path(self, name: str) -> Path:
        """The ONNX file of a network; its hash must be the one that was exported."""
        from mint_deploy import files

        model = self.models[name]
        path = self.folder / Path(model.path).name
        if not path.is_file():
            raise DataError(f"the bundle lacks {path.name}; copy the whole bundle anew")
        found = files.sha256(path)
        if found != model.sha256:
            raise DataError(
                f"{path.name} has SHA-256 {found[:12]}..., the bundle says {model.sha256[:12]}...; "
                "it was changed or damaged on the way: copy the bundle anew"
            )
        return path

    def check(self) -> list[str]:
        """Compare every file with its hash; a bundle lists them, a run folder does not."""
        from mint_deploy.manifest import differences

        listed = self.deploy.get("files") or {}
        if found := differences(self.folder, listed):
            raise DataError(f"the bundle is damaged: {'; '.join(found)}; copy it anew")
        return [f"{len(listed)} files are as they were packed"] if listed else []

    def runtime(self, asked: str | None) -> tuple[str, list[str]]:
        """The runtime that runs the files here, and a note where it is not the target's."""
        from mint_deploy import plugins

        wanted = str(self.target.get("runtime", "onnxruntime"))
        name, notes = asked or wanted, []
        if asked is None and (
            wanted not in plugins.known("runtime")
            or plugins.load("runtime", wanted).missing() is not None
        ):
            name = "onnxruntime"
            notes = [f"note: the target's runtime is {wanted}; these figures are onnxruntime's"]
        _need(name)
        return name, notes

    def batch(self, name: str) -> int:
        """The batch of a network: its own where it is fixed, else the target's."""
        first = next((s.shape[0] for s in self.models[name].inputs if s.shape), -1)
        return first if first > 0 else int(self.target.get("batch", 1))


def _need(runtime: str) -> None:
    """Refuse a runtime that cannot be used here, with the one command that mends it."""
    from mint_deploy import plugins

    plugin = plugins.load("runtime", runtime)
    reason = plugin.missing()
    if reason is not None:
        mend = getattr(plugin, "MEND", f"pip install {runtime}")
        raise RuntimeMissing(runtime, reason, str(mend))


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

    bundle = _Bundle(arguments.bundle)
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
    from mint_deploy import plugins
    from mint_deploy.parity import read_parity

    bundle = _Bundle(arguments.bundle)
    lines = bundle.check()
    parity = read_parity(bundle.folder / "parity.npz")
    runtime, notes = bundle.runtime(arguments.runtime)
    lines += notes
    plugin = plugins.load("runtime", runtime)
    errors = {}
    for name in bundle.models:
        with plugin.runner(plugin.build(bundle.path(name), bundle.target, None)) as live:
            worst = parity.check(name, live.infer, batch=bundle.batch(name))
        if not worst <= parity.tolerance:
            raise ExportMismatch(
                _outputs(bundle.models[name]), worst, parity.tolerance,
                advice=f"'{name}' in {runtime} on this machine; try another runtime or version",
            )  # fmt: skip
        errors[name] = worst
        lines.append(
            f"{name}: largest relative error {worst:.1e} of {parity.tolerance:.0e} allowed"
        )
    body = {"runtime": runtime, "errors": errors, "tolerance": parity.tolerance}
    return body, lines


def _outputs(model: ExportedModel) -> str:
    return ", ".join(spec.name for spec in model.outputs)


def _bench(arguments: argparse.Namespace) -> tuple[Answer, list[str]]:
    from mint_deploy.bench import MeasuringStopped, interleave, save

    bundle = _Bundle(arguments.bundle)
    runtime, lines = bundle.runtime(arguments.runtime)
    batches = {bundle.batch(name) for name in bundle.models}
    if len(batches) > 1:
        raise ConfigError(f"dense and slim have different batches {sorted(batches)}; export anew")
    try:
        measured, compared = interleave(
            {name: bundle.path(name) for name in bundle.models},
            runtime=runtime,
            threads=arguments.threads or int(bundle.target.get("threads", 1)),
            batch=batches.pop(),
            restarts=arguments.restarts,
            budget_s=arguments.seconds,
            target=bundle.target,
            progress=_teller(),
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
