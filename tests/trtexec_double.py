"""A contract double of trtexec: it takes the options that a release parses, and no others.

It does not compute: it plays the program's contract as sampleOptions.cpp, sampleEngines.cpp,
sampleReporting.cpp and trtexec.cpp of each release state it (flags: ``transcripts/flags-*.txt``).
An unknown option prints ``Unknown option`` and exits with 1, so does a value that the parser would
refuse; files have the documented form; the defaults are those of the release, so that a flag left
out means what it means there. ``install`` puts it on PATH as an executable; what a test wants to go
wrong is told it by the environment:

    DOUBLE_LACKS=Op,Op   operators that its ONNX parser does not know
    DOUBLE_MEMORY=kill   the system ends it (signal 9);  =gpu: CUDA runs out of memory
    DOUBLE_DLA=2         cores of the Deep Learning Accelerator; DOUBLE_NOT_ON_DLA=Op,Op
    DOUBLE_TIMES_MS=3,2  milliseconds a query takes, one entry for each build (``DOUBLE_STATE`` counts)
    DOUBLE_CALLS         a file that each command line is appended to, as JSON
    DOUBLE_SLEEP=pid     write its process id into that file and build for ever
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any

TRANSCRIPTS = Path(__file__).with_name("transcripts")
VERSIONS = {"8.5": "8.5.2", "8.6": "8.6.2", "10.3": "10.3.0", "11.1": "11.1.0"}
PROFILING = {"layer_names_only", "none", "detailed", "default", "verbose"}
_FLOAT16 = 10  # TensorProto.DataType
MEMORY_POOLS = {"workspace", "dlaSRAM", "dlaLocalDRAM", "dlaGlobalDRAM"}


def banner(version: str) -> str:
    """How the program names itself: 8502 is 8.5.2, 100300 is 10.3.0; 11 adds its build."""
    major, minor, patch = map(int, VERSIONS[version].split("."))
    number = major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch
    return f"[TensorRT v{number}]" + (" [b106]" if major >= 11 else "")


def transcript(name: str) -> str:
    """A recorded text without its head."""
    lines = (TRANSCRIPTS / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def flags(version: str) -> set[str]:
    """The options that a release parses."""
    return set(transcript(f"flags-{version}.txt").split())


def install(folder: Path, version: str) -> Path:
    """Write an executable ``trtexec`` of a release into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "trtexec"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from trtexec_double import main\nmain({version!r})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


class Refusal(Exception):
    """What the real program answers with std::invalid_argument, or by reporting a failure."""


def main(version: str) -> None:
    """Play the program and exit as it does."""
    given = sys.argv[1:]
    if calls := os.environ.get("DOUBLE_CALLS"):
        with Path(calls).open("a") as stream:
            stream.write(json.dumps(given) + "\n")
    line = f"TensorRT.trtexec {banner(version)} # {' '.join(sys.argv)}"
    print(f"&&&& RUNNING {line}")
    options = dict(a.partition("=")[::2] for a in given)
    if "--help" in options or "-h" in options:
        print("=== Model Options ===\n  --onnx=<file>               ONNX model")
        raise SystemExit(0)
    try:
        unknown = sorted(set(options) - flags(version))
        if unknown:
            raise Refusal("\n".join(f"[E] Unknown option: {u} {options[u]}" for u in unknown))
        _check(version, options)
        _run(version, options)
    except Refusal as refusal:
        print(refusal)
        print(f"&&&& FAILED {line}")
        raise SystemExit(1) from None
    print(f"&&&& PASSED {line}")
    raise SystemExit(0)


# ---------------------------------------------------------------- what the parsers refuse


def _check(version: str, options: dict[str, str]) -> None:
    """The std::invalid_argument's of the parse functions that matter here."""
    if "--loadEngine" in options and "--saveEngine" in options:
        raise Refusal("[E] Incompatible load and save engine options selected")
    if "--loadEngine" not in options and "--onnx" not in options:
        raise Refusal("[E] Model missing or format not recognized")
    if options.get("--sparsity", "disable") not in ("disable", "enable", "force"):
        raise Refusal(f"[E] Unknown sparsity mode: {options['--sparsity']}")
    if options.get("--profilingVerbosity", "none") not in PROFILING:
        raise Refusal(f"[E] Unknown profilingVerbosity: {options['--profilingVerbosity']}")
    for spec in filter(None, options.get("--memPoolSize", "").split(",")):
        pool, _, size = spec.partition(":")
        pools = MEMORY_POOLS | ({"tacticSharedMem"} if version in ("10.3", "11.1") else set())
        if pool not in pools:
            raise Refusal(f"[E] Unknown memory pool: {pool}")
        if not re.fullmatch(
            r"\d+(\.\d+)?[BKMG]?" if version in ("10.3", "11.1") else r"\d+(\.\d+)?", size
        ):
            raise Refusal(f"[E] {size} conversion failure: failed to parse --memPoolSize.")
    ends = [f"--{end}Shapes" in options for end in ("min", "opt", "max")]
    if any(ends) and not all(ends) and ends != [False, True, False]:
        raise Refusal(
            "[E] Must specify only --optShapes or all of --minShapes, --optShapes, --maxShapes"
        )
    for percent in filter(None, options.get("--percentile", "").split(",")):
        if not 0 <= float(percent) <= 100:
            raise Refusal(f"[E] Percentile {percent} is not in [0,100]")
    level = int(options.get("--builderOptimizationLevel", 3))
    if not 0 <= level <= 5:
        raise Refusal(f"[E] Invalid builder optimization level {level}")


def shapes_of(spec: str) -> dict[str, tuple[int, ...]]:
    """``a:1x3,b:2`` as the program reads it: the name is all before the last colon."""
    out = {}
    for entry in filter(None, spec.split(",")):
        name, _, dims = entry.rpartition(":")
        out[name] = tuple(int(d) for d in dims.split("x"))
    return out


# ---------------------------------------------------------------- what it does


def effective(version: str, options: dict[str, str]) -> dict[str, str]:
    """What a run would do, with the defaults of the release, as its log says it."""
    eleven = version == "11.1"
    graph = "--noCudaGraph" not in options if eleven else "--useCudaGraph" in options
    if eleven and "--useDLACore" in options:
        graph = False
    on = {
        "Data transfers": "--includeDataTransfers" in options
        if eleven
        else "--noDataTransfers" not in options,
        "Spin-wait": "--noSpinWait" not in options if eleven else "--useSpinWait" in options,
        "CUDA Graph": graph,
        "Separate profiling": eleven or "--separateProfileRun" in options,
    }
    return {
        "Iterations": options.get("--iterations", "10"),
        "Duration": options.get("--duration", "3"),
        "Warm up": options.get("--warmUp", "200"),
        "Inference Streams": options.get("--infStreams", options.get("--streams", "1")),
        **{name: "Enabled" if value else "Disabled" for name, value in on.items()},
    }


def _run(version: str, options: dict[str, str]) -> None:
    for name, value in effective(version, options).items():
        print(f"[11/26/2026-10:00:00] [I] {name}: {value}")
    if "--loadEngine" in options:
        _infer(version, options, read_plan(Path(options["--loadEngine"]), version))
        return
    plan = _build(version, options)
    if "--saveEngine" in options:
        write_plan(Path(options["--saveEngine"]), version, plan)
    if cache := options.get("--timingCacheFile"):
        Path(cache).write_bytes(b"timing cache of " + VERSIONS[version].encode() + os.urandom(4))
    _export_layers(options, plan)
    skip = "--buildOnly" in options or "--skipInference" in options
    if not skip:
        _infer(version, options, plan)


def _build(version: str, options: dict[str, str]) -> dict[str, object]:
    path = Path(options["--onnx"])
    try:
        model = _messages().ModelProto.FromString(path.read_bytes())
    except Exception as error:
        raise Refusal(f"[E] Failed to parse onnx file\n[E] Parsing model failed {error}") from error
    print("[11/26/2026-10:00:01] [I] Start parsing network model.")
    _parse(version, model)
    if place := os.environ.get("DOUBLE_SLEEP"):
        Path(place).write_text(str(os.getpid()))
        time.sleep(60)
    if os.environ.get("DOUBLE_MEMORY") == "kill":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("DOUBLE_MEMORY") == "gpu":
        raise Refusal(transcript("log-10.3-out-of-memory.txt"))
    weak = {f for f in ("--fp16", "--int8", "--best") if f in options}
    strong = version == "11.1" or "--stronglyTyped" in options
    half = any(t.data_type == _FLOAT16 for t in model.graph.initializer)
    quantised = any(n.op_type.endswith("QuantizeLinear") for n in model.graph.node)
    if quantised and not strong and "--int8" not in weak:
        raise Refusal(
            "[E] Error[4]: [network.cpp::validate::3062] Error Code 4: Internal Error (Int8 "
            "precision has been set for a layer or layer output, but int8 is not configured in the builder)"
        )
    profile = {end: shapes_of(options.get(f"--{end}Shapes", "")) for end in ("min", "opt", "max")}
    _check_shapes(model, profile)
    fell_back = _dla(version, options, model)
    return {
        "onnx": path.read_bytes().hex(),
        "types": "strong" if strong else "+".join(sorted(weak)) or "fp32",
        "half": half,
        "tf32": "--noTF32" not in options,
        "profile": profile,
        "verbosity": options.get("--profilingVerbosity", "layer_names_only"),
        "fell_back": fell_back,
        "try": _count("builds"),
    }


def _messages() -> Any:
    """The messages of ONNX without the rest of the package, whose import is most of a run's time."""
    (folder,) = importlib.util.find_spec("onnx").submodule_search_locations
    spec = importlib.util.spec_from_file_location("onnx_messages", Path(folder) / "onnx_ml_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse(version: str, model) -> None:
    """What the ONNX parser of the release prints about an operator that it lacks."""
    lacks = set(filter(None, os.environ.get("DOUBLE_LACKS", "").split(",")))
    for number, node in enumerate(model.graph.node):
        if node.op_type not in lacks:
            continue
        stamp, file = "[11/26/2026-10:00:02] [E] [TRT]", "ModelImporter.cpp"
        dump = (
            [f"{stamp} {file}:950: --- Begin node ---"]
            if version in ("10.3", "11.1")
            else [f"{stamp} {file}:727: --- Begin node ---"]
        )
        body = [f'input: "{name}"' for name in node.input] + [
            f'output: "{name}"' for name in node.output
        ]
        body += [f'name: "{node.name}"', f'op_type: "{node.op_type}"']
        words = (
            'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
        )
        if version in ("10.3", "11.1"):
            end = [
                f"{stamp} {file}:954: ERROR: onnxOpCheckers.cpp:818 In function checkFallbackPluginImporter:",
                f"[6] {words}",
            ]
        else:
            body[0] = f"{stamp} {file}:728: {body[0]}"
            end = [
                (
                    f"{stamp} {file}:732: ERROR: builtin_op_importers.cpp:5428 In function "
                    "importFallbackPluginImporter:"
                ),
                f"[8] Assertion failed: {words}",
            ]
        raise Refusal(
            "\n".join(
                [
                    (
                        f"{stamp} {file}:949: While parsing node number {number} "
                        f'[{node.op_type} -> "{node.output[0]}"]:'
                    ),
                    *dump,
                    *body,
                    f"{stamp} {file}:951: --- End node ---",
                    *end,
                    "[11/26/2026-10:00:02] [E] Failed to parse onnx file",
                    "[11/26/2026-10:00:02] [E] Parsing model failed",
                    "[11/26/2026-10:00:02] [E] Failed to create engine from model or file.",
                    "[11/26/2026-10:00:02] [E] Engine set up failed",
                ]
            )
        )


def _check_shapes(model, profile: dict[str, dict[str, tuple[int, ...]]]) -> None:
    """setupNetworkAndConfig of sampleEngines.cpp: names must exist, a static model takes no shapes."""
    weights = {t.name for t in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in weights}
    for name in profile["opt"]:
        if name not in inputs:
            raise Refusal(
                f'[E] Cannot find input tensor with name "{name}" in the network inputs! Please make '
                "sure the input tensor names are correct."
            )

    def is_open(value) -> bool:
        return any(not d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)

    if profile["opt"] and not any(is_open(i) for i in inputs.values()):
        raise Refusal(
            "[E] Static model does not take explicit shapes since the shape of inference tensors will "
            "be determined by the model itself"
        )
    for name, value in inputs.items():
        if is_open(value) and name not in profile["opt"]:
            print(
                f"[W] Dynamic dimensions required for input: {name}, but no shapes were provided."
            )
        for end in ("min", "opt", "max") if name in profile["opt"] else ():
            asked = profile[end][name]
            dims = [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ]
            if len(asked) != len(dims) or any(
                d not in (None, a) for a, d in zip(asked, dims, strict=True)
            ):
                raise Refusal("[E] Error in set dimensions to profile")


def _dla(version: str, options: dict[str, str], model) -> list[str]:
    if "--useDLACore" not in options:
        return []
    cores = int(os.environ.get("DOUBLE_DLA", "0"))
    if int(options["--useDLACore"]) >= cores:
        raise Refusal(f"[E] Cannot create DLA engine, {options['--useDLACore']} not available")
    cannot = set(filter(None, os.environ.get("DOUBLE_NOT_ON_DLA", "").split(",")))
    names = [n.name or n.output[0] for n in model.graph.node if n.op_type in cannot]
    if names and "--allowGPUFallback" not in options:
        raise Refusal(
            "[E] Error Code 4: Internal Error (a layer cannot run on DLA and GPU fallback is off)"
        )
    kinds = {n.name or n.output[0]: n.op_type.upper() for n in model.graph.node}
    for name in names:
        if version == "8.5":
            print(
                f"[W] [TRT] Default DLA is enabled but layer {name} is not supported on DLA, falling back to GPU."
            )
        else:
            print(
                f"[W] [TRT] Layer '{name}' ({kinds[name]}): Unsupported on DLA. Switching this layer's "
                "device type to GPU."
            )
    return names


def _layers(plan: dict[str, object]) -> list[tuple[str, str, list[str], int | None]]:
    """Layers as the builder would fuse them: a Relu joins what it follows."""
    model = _messages().ModelProto.FromString(bytes.fromhex(str(plan["onnx"])))
    widths = {t.name: t.dims[0] for t in model.graph.initializer if t.dims}
    out: list[tuple[str, str, list[str], int | None]] = []
    for node in model.graph.node:
        name = node.name or node.output[0]
        if node.op_type == "Relu" and out:
            before = out[-1]
            out[-1] = (f"{before[0]} + {name}", before[1], [*before[2], name], before[3])
            continue
        width = next((widths[i] for i in node.input if i in widths), None)
        out.append((name, node.op_type, [name], width))
    return out


def _export_layers(options: dict[str, str], plan: dict[str, object]) -> None:
    if "--exportLayerInfo" not in options:
        return
    entries: list[object] = []
    for name, kind, origins, width in _layers(plan):
        if plan["verbosity"] not in ("detailed", "verbose"):
            entries.append(name)
            continue
        entries.append(
            {
                "Name": name,
                "LayerType": f"Cask{kind}",
                "Inputs": [],
                "ParameterType": kind,
                "Outputs": [
                    {
                        "Name": name,
                        "Dimensions": [],
                        "Format/Datatype": "Half" if plan["half"] else "Float",
                    }
                ],
                **({"OutMaps": width} if width is not None else {}),
                "TacticName": f"sm87_{kind.lower()}",
                "StreamId": 0,
                "Metadata": "\x1e".join(f"[ONNX Layer: {o}]" for o in origins),
            }
        )
    Path(options["--exportLayerInfo"]).write_text(
        json.dumps({"Layers": entries, "Bindings": []}, indent=1)
    )


def _infer(version: str, options: dict[str, str], plan: dict[str, object]) -> None:
    asked = shapes_of(options.get("--shapes", ""))
    profile = plan["profile"]
    assert isinstance(profile, dict)
    for name, shape in asked.items():
        low, high = profile["min"].get(name), profile["max"].get(name)
        if low is None or not all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True)):
            raise Refusal(f"[E] Static model or shape out of range for {name}: {shape}")
    times = [float(t) for t in os.environ.get("DOUBLE_TIMES_MS", "3.1").split(",")]
    per_query = times[min(int(str(plan["try"])), len(times) - 1)]
    copies = effective(version, options)["Data transfers"] == "Enabled"
    rng = random.Random(0)
    if path := options.get("--exportTimes"):
        Path(path).write_text(
            _times(max(int(options.get("--iterations", 10)), 10), per_query, copies, rng)
        )
    if path := options.get("--exportProfile"):
        names = [entry[0] for entry in _layers(plan)]
        share = per_query / len(names)
        rows = [f'  {{ "count" : {options.get("--iterations", 10)} }}']
        rows += [
            f', {{ "name" : "{name}", "timeMs" : {share * 100:g}, "averageMs" : {share:g}, '
            f'"medianMs" : {share:g}, "percentage" : {100 / len(names):g} }}'
            for name in names
        ]
        Path(path).write_text("[\n" + "\n".join(rows) + "\n]\n")
    print("[11/26/2026-10:00:09] [I] === Performance summary ===")


def _times(count: int, ms: float, copies: bool, rng: random.Random) -> str:
    """exportJSONTrace of sampleReporting.cpp."""
    rows, at, copy = [], 500.0, 0.2 if copies else 0.0
    for _ in range(count):
        compute = ms * rng.uniform(0.99, 1.01)
        h2d, start, end = at, at + copy, at + copy + compute
        rows.append(
            f'{{ "startEnqMs" : {at:g}, "endEnqMs" : {at + 0.01:g}, '
            f'"startH2dMs" : {h2d:g}, "endH2dMs" : {start:g}, '
            f'"startComputeMs" : {start:g}, "endComputeMs" : {end:g}, '
            f'"startD2hMs" : {end:g}, "endD2hMs" : {end + copy:g}, '
            f'"h2dMs" : {copy:g}, "computeMs" : {compute:g}, "d2hMs" : {copy:g}, '
            f'"latencyMs" : {compute + 2 * copy:g} }}'
        )
        at = end + copy
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


# ---------------------------------------------------------------- plans


def write_plan(path: Path, version: str, body: dict[str, object]) -> None:
    """A plan: the head that ``--getPlanVersionOnly`` reads (8.5 had another), then what was built."""
    numbers = [*map(int, VERSIONS[version].split(".")), 26]
    tag = b"ptrt" if version == "8.5" else b"ftrt"
    payload = json.dumps({"version": VERSIONS[version], **body}).encode()
    path.write_bytes(struct.pack("<4sI16x4B", tag, 0, *numbers) + payload)


def read_plan(path: Path, version: str) -> dict[str, object]:
    """Load a plan, or refuse it as the release words it."""
    data = path.read_bytes()
    try:
        body = json.loads(data[28:])
    except ValueError as error:
        raise Refusal(
            "[E] Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
        ) from error
    if body["version"] != VERSIONS[version]:
        raise Refusal(
            "[E] [TRT] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan "
            "file is not compatible with this version of TensorRT, expecting library version "
            f"{VERSIONS[version]}.26 got {body['version']}.26, please rebuild.)"
        )
    return body


def _count(what: str) -> int:
    """How often this was done before, across runs of the program."""
    state = os.environ.get("DOUBLE_STATE")
    if state is None:
        return 0
    path = Path(state)
    counts = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**counts, what: counts.get(what, 0) + 1}))
    return int(counts.get(what, 0))
