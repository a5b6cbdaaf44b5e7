"""What a file is and where it came from: every kind that a run, a bundle or a board leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mint_deploy.cli import plans
from mint_deploy.errors import DataError

__all__ = ["inspected"]


def inspected(path: Path) -> dict[str, Any]:
    """Return what a file or folder is (``what``), and where it came from.

    Raises:
        DataError: missing, damaged, or nothing that is known here.
    """
    if not path.exists():
        raise DataError(f"cannot read {path}: no such file")
    if path.is_dir():
        return _folder(path)
    for suffix, look in _LOOKS.items():
        if path.name.endswith(suffix):
            return look(path)
    return _json(path)


def _arrays(path: Path) -> dict[str, Any]:
    from mint_deploy.files import read_arrays

    header, arrays = read_arrays(path)
    shapes = {name: list(a.shape) for name, a in arrays.items()}
    found = {
        "what": f"arrays of {header.get('kind', 'unknown kind')}",
        **header,
        "arrays": shapes,
    }
    return {**found, "ranking": _ranking(path)} if header.get("kind") == "Importance" else found


def _ranking(path: Path) -> dict[str, Any]:
    from mint_deploy.report.ranking import whole
    from mint_deploy.scores_file import read_scores

    return whole(read_scores(path))


def _folder(path: Path) -> dict[str, Any]:
    if (path / "run.json").is_file():
        from mint_deploy.runfolder import read_manifest

        manifest = read_manifest(path)
        return {
            "what": "a run folder",
            "created": manifest.created,
            "command": " ".join(manifest.command),
            "stages done": ", ".join(manifest.stages),
            "settings": {k: v for k, v in manifest.settings.items() if v is not None},
            "versions": dict(manifest.versions),
            "facts": dict(manifest.facts),
        }
    names = sorted(p.name for p in path.iterdir())
    if "deploy.json" in names:
        return _bundle(path)
    if "engine.json" in names:
        return _engine(path / "engine.json")
    raise DataError(
        f"{path} is no run folder, bundle or engine: it has no run.json, deploy.json or engine.json"
    )


def _bundle(path: Path) -> dict[str, Any]:
    """A bundle, every file of which is compared with its hash."""
    from mint_deploy.bundle import verify_bundle

    deploy = verify_bundle(path)
    target = deploy.get("target") or {}
    networks = {
        label: f"{deploy[label]['path']}, opset {deploy[label]['opset']}, {deploy[label]['bytes']} bytes"
        for label in ("dense", "slim")
        if deploy.get(label)
    }
    for label, entry in (deploy.get("lower") or {}).items():
        made = entry["model"]
        networks[f"{label} in {target.get('precision')}"] = (
            f"{made['path']}, {made['bytes']} bytes, {min(entry['snr_db'].values()):.1f} dB signal to noise"
        )
    return {
        "what": "a bundle",
        "written_by": deploy.get("written_by"),
        "for": f"{target.get('name')}, {target.get('runtime')}, {target.get('precision')}",
        **networks,
        "plan_digest": deploy.get("plan_digest"),
        "files": f"{len(deploy['files'])}, as they were packed: {', '.join(deploy['files'])}",
        "engine": _engine(path / "engine.json") if (path / "engine.json").is_file() else None,
    }


def _archive(path: Path) -> dict[str, Any]:
    import tempfile

    from mint_deploy.bundle import unpack_bundle
    from mint_deploy.files import sha256

    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        found = _bundle(unpack_bundle(path, Path(folder)))
    size = path.stat().st_size
    return {**found, "what": "a bundle in an archive", "bytes": size, "sha256": sha256(path)}


def _engine(path: Path) -> dict[str, Any]:
    """An engine, by its plan or its record; whether the plan is the recorded one."""
    from mint_deploy import engine_file
    from mint_deploy.files import sha256

    beside = path.with_name("engine.json")
    if not beside.is_file():
        raise DataError(
            f"{path} has no engine.json beside it, so where it came from is not known; TensorRT in it: "
            f"{engine_file.plan_version(path) or 'it does not say'}"
        )
    engine = engine_file.read(path)
    plan = Path(engine.path)
    if not plan.is_file():
        state = "missing"
    else:
        state = "as it was built" if sha256(plan) == engine.sha256 else "altered since it was built"
    return {
        "what": "an engine",
        "plan": f"{plan.name}, {state}",
        "runtime": engine.runtime,
        "precision": engine.precision,
        "sha256": engine.sha256,
        "built for": dict(engine.builder),
        "flags": dict(engine.flags),
        "built anew by": engine_file.rebuild_command(engine),
    }


def _program(path: Path) -> dict[str, Any]:
    import re
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            text = archive.read("mint_deploy/_version.py").decode()
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no device program of mint-deploy ({error})") from error
    version = re.search(r'__version__ = "([^"]+)"', text)
    return {
        "what": "the device program",
        "version": version[1] if version else None,
        "modules": len(names),
        "bytes": path.stat().st_size,
        "run it": f"python3 {path.name} probe",
    }


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    from mint_deploy.files import sha256

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise DataError(f"{path} is not an ONNX file ({error})") from error
    return {
        "what": "an ONNX file",
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
        "precision": _precision(model),
        "inputs": _tensors(model.graph.input),
        "outputs": _tensors(model.graph.output),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        **{p.key: p.value for p in model.metadata_props},
    }


def _tensors(values: Any) -> dict[str, str]:
    def text(value: Any) -> str:
        dims = value.type.tensor_type.shape.dim
        return "x".join(d.dim_param or str(d.dim_value) for d in dims)

    return {value.name: text(value) for value in values}


def _precision(model: Any) -> str:
    """What the weights and the nodes say: Q/DQ nodes, half or single precision."""
    import onnx

    quantised = sum(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)
    if quantised:
        return f"int8, {quantised} nodes of Q/DQ"
    half = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return f"fp16, {half} tensors of half precision" if half else "fp32"


def _weights(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 - no mapping
            about = dict(stored.metadata() or {})
    except Exception as error:
        raise DataError(f"{path} is not a safetensors file ({error})") from error
    count = sum(_product(shape) for shape in shapes.values())
    return {"what": "weights", "tensors": len(shapes), "numbers": count, **about}


def _product(shape: list[int]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


def _json(path: Path) -> dict[str, Any]:
    import json

    try:
        body = json.loads(path.read_text(encoding="utf-8").partition("\n{")[0])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a file that mint-deploy wrote ({error}); expected JSON, ONNX, npz or "
            "safetensors"
        ) from error
    if not isinstance(body, dict) or "kind" not in body:
        raise DataError(f"{path} is JSON, but not written by mint-deploy: it has no 'kind'")
    if body["kind"] != "PruningPlan":
        body = {k: v for k, v in body.items() if not isinstance(v, (list, dict))} | {
            k: f"{len(v)} entries" for k, v in body.items() if isinstance(v, (list, dict))
        }
        return {"what": f"a {body.pop('kind')}", **body}
    return plans.inspected(path, str(body.get("written_by")))


def _pt2(path: Path) -> dict[str, Any]:
    from mint_deploy.pt2_check import check_pt2

    archive = check_pt2(path)
    return {
        "what": "an exported program without pickles",
        "torch": archive.model.get("torch_version"),
        "tensors": len(archive.weights["config"]) + len(archive.constants["config"]),
        "bytes": sum(len(data) for data in archive.payloads.values()),
        "operators": list(archive.operators),
        **archive.about,
    }


#: end of a file's name -> who looks into it; any other is taken for JSON
_LOOKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".npz": _arrays,
    ".safetensors": _weights,
    ".plan": _engine,
    ".engine": _engine,
    "engine.json": _engine,
    ".tar.gz": _archive,
    ".tgz": _archive,
    ".pyz": _program,
}
