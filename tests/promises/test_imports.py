"""What an import may load, and which names the package shows."""

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import mint_deploy

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "matplotlib", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "typer", "rich")

BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    out = python(f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    return set(json.loads(out.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import mint_deploy") & set(HEAVY) == set()


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_by("import mint_deploy.cli") & (set(HEAVY) - {"typer"}) == set()


def test_help_is_fast() -> None:
    """300 ms on a quiet machine; its CPU time, the best of five, as others may be at work here."""
    seconds = []
    for _ in range(5):
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "mint_deploy", "--help"],
            capture_output=True, check=True, cwd=ROOT,
        )  # fmt: skip
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
    assert min(seconds) < 0.6, seconds


def test_public_names() -> None:
    """The names of the public face; one that leaves or changes needs a line in the changelog."""
    assert set(mint_deploy.__all__) == {
        "__version__",
        "trace", "sample", "score", "dependency", "plan", "cut", "remove_dead", "compose", "verify", "repair",
        "recover", "export", "save_pt2", "export_program", "measure", "compare", "compress", "load",
        "Accuracy", "Comparison", "Engine", "ExportedModel", "Importance", "Machine",
        "Measurement", "Moments", "PruningPlan", "Target",
        "MintDeployError",
    }  # fmt: skip


@pytest.mark.parametrize("name", [n for n in mint_deploy.__all__ if n != "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(mint_deploy, name)
    assert callable(value)
    assert value.__module__.startswith("mint_deploy.")
    assert value.__doc__


def test_a_verb_wins_over_the_module_of_its_name() -> None:
    python(
        "import mint_deploy.plan, mint_deploy.verify, mint_deploy.export, mint_deploy as md\n"
        "assert callable(md.plan) and callable(md.verify) and callable(md.export)\n"
        "from mint_deploy.plan import plan\n"
        "assert md.plan is plan\n"
    )


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "mint_deploy" / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(mint_deploy.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        mint_deploy.prune  # noqa: B018 - the access is what is tested


def test_the_device_half_imports_where_nothing_is_installed() -> None:
    blocked = {
        "torch", "typer", "rich", "jinja2", "onnx", "onnxruntime", "onnxscript", "sklearn",
        "scipy", "PIL", "safetensors", "psutil", "tensorrt", "tomli", "tomllib",
    }  # fmt: skip
    code = BLOCK.format(blocked=blocked) + (
        "import importlib, pkgutil, mint_deploy.runtimes as r\n"
        "names = ['runtimes.' + m.name for m in pkgutil.iter_modules(r.__path__)]\n"
        "names += ['machine', 'bench', 'statistics', 'compare', 'errors', 'artifacts', 'files',"
        " 'plugins']\n"
        "for name in names: importlib.import_module('mint_deploy.' + name)\n"
        "print(len(names))\n"
    )
    assert int(python(code)) >= 10
