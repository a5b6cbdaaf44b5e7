"""Imports point down: base <- device half, report <- host half <- pipeline <- command line."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mint_deploy"

#: the first part of a module's name -> its layer; a new module must be given a place here
LAYERS = {
    "base": {
        "_version", "errors", "artifacts", "values", "files", "plugins", "target", "_target_checks", "overview",
        "scores_file",
    },
    "device": {
        "runtimes", "sensors", "machine", "bench", "_bench_base", "_bench_child", "_bench_files",
        "_bench_turns", "_bench_worker", "statistics", "doubts", "compare", "parity", "manifest",
        "recipe", "trtexec", "device", "looks", "engine_file", "limits", "pairing", "measurement_file",
        "stopping",
        "digits", "quiet", "_blocks", "_advice", "_bench_cores", "_bench_energy", "_bench_loop", "_bench_streams",
        "_bench_sweep", "_cgroup",
        "_machine_board", "_machine_cpu", "_machine_gpu", "_machine_versions", "_machine_where", "_nvml",
        "_onnx_head",
        "_ort_cache", "_ort_providers", "_ort_session", "_processes", "_quiet_advice", "_quiet_block",
        "_quiet_worker", "_rails", "_student", "_sysfs", "_torch_hold", "_trt_api", "_trt_build", "_trt_cuda",
        "_trt_dialects", "_trt_exports", "_trt_here", "_trt_log", "_trt_session", "_unsupported", "onnx_wire",
        "layer_times", "_layer_child", "_arrived", "_signal", "_trt_bench",
    },
    "report": {"report"},
    "host": {
        "user_code", "models", "data", "inference", "inputs", "intervals", "evaluate", "batchnorm",
        "checkpoint", "schedule", "training", "recover", "tracing", "graph", "gate", "trace",
        "moments", "moments_file", "sums", "taps", "feed", "agreement", "blas", "covariance", "readers",
        "dependency", "sparsity", "estimators", "criteria", "plan", "surgery", "verify", "repair", "face",
        "onnx_file", "torch_onnx", "export", "onnx_cost", "predict", "bundle", "example", "onnx_layers",
        "onnx_figures", "onnx_tidy", "profile_layers", "module_times",
        "open_batch", "quantize",
        "sensitivity", "dead", "lossless", "survey", "silence", "pt2", "pt2_check",
        "pt2_formula", "compose", "plan_file", "loading", "user_model", "attention",
        "reference", "settle", "culprits",
        "program", "program_axes", "program_export", "program_form", "program_graph",
    },
    "pipeline": {
        "folders", "runfolder", "settings", "progress", "stages", "job", "steps", "pipeline",
        "cut_record", "bench_run", "precision",
    },
    "cli": {"cli", "__main__"},
}  # fmt: skip

#: what each layer may import beside itself
BELOW = {
    "base": set(),
    "device": {"base"},
    "report": {"base", "device"},
    "host": {"base", "device"},
    "pipeline": {"base", "device", "report", "host"},
    "cli": {"base", "device", "report", "host", "pipeline"},
}

#: what base and the device half may import from outside at module level: they travel to a board
ON_A_BOARD = {"numpy"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    found.pop("__init__", None)
    return found


def layer_of(module: str) -> str:
    top = module.split(".")[0]
    owners = [layer for layer, names in LAYERS.items() if top in names]
    assert len(owners) == 1, f"mint_deploy/{top} has no layer yet: add it to LAYERS"
    return owners[0]


def imports(tree: ast.Module, *, everywhere: bool) -> list[tuple[str, int]]:
    """Every imported module, or those that an import of the file itself needs."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                found.extend((f"{child.module}.{a.name}", child.lineno) for a in child.names)
            elif everywhere or not waits(child):
                visit(child)

    visit(tree)
    return found


def waits(node: ast.AST) -> bool:
    """Whether what stands in ``node`` is not run when its module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def ours(name: str, known: dict[str, Path]) -> str | None:
    """``mint_deploy.plan.plan`` -> ``plan``: the module of ours that is imported, or has the name."""
    if not name.startswith("mint_deploy."):
        return None
    inner = name.removeprefix("mint_deploy.")
    return next((m for m in (inner, inner.rpartition(".")[0]) if m in known), None)


def test_imports_point_down() -> None:
    known = modules()
    wrong = []
    for module, path in known.items():
        layer = layer_of(module)
        for name, line in imports(ast.parse(path.read_text()), everywhere=True):
            inner = ours(name, known)
            if inner is not None and layer_of(inner) not in {layer, *BELOW[layer]}:
                wrong.append(f"{path.name}:{line}: {layer} imports {inner} of {layer_of(inner)}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle() -> None:
    known = modules()
    edges = {
        module: {
            inner
            for name, _ in imports(ast.parse(path.read_text()), everywhere=False)
            if (inner := ours(name, known)) is not None and inner != module
        }
        for module, path in known.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for inner in edges[module]:
                walk(inner, (*trail, module))
            done.add(module)

    for module in known:
        walk(module, ())


def test_what_travels_needs_numpy_alone() -> None:
    import sys

    wrong = []
    for module, path in modules().items():
        if layer_of(module) not in ("base", "device"):
            continue
        for name, line in imports(ast.parse(path.read_text()), everywhere=False):
            top = name.split(".")[0]
            if top not in {"mint_deploy", *ON_A_BOARD, *sys.stdlib_module_names}:
                wrong.append(f"{path.name}:{line} imports {name} at its head")
            if top == "tomllib":
                wrong.append(f"{path.name}:{line} imports tomllib, which Python 3.10 lacks")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", modules().values(), ids=modules().keys())
def test_every_module_is_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_no_file_is_too_long() -> None:
    root = PACKAGE.parent
    sizes = {
        str(path.relative_to(root)): len(path.read_text().splitlines())
        for folder in ("mint_deploy", "benchmarks")
        for path in (root / folder).rglob("*.py")
    }
    assert {name: n for name, n in sizes.items() if n > 400} == {}
