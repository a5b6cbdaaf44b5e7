"""The commands that only look: ``targets``, ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mint_deploy.cli import options as o
from mint_deploy.cli import plans, show
from mint_deploy.errors import DataError

__all__ = ["inspect", "targets"]


# ---------------------------------------------------------------- targets


def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One profile.", show_default=False)
    ] = None,
    json: o.Json = False,
) -> None:
    """List the devices, or show one profile with the source of each number."""
    from mint_deploy.target import load_target, target_names

    if name is None:
        profiles = [load_target(known) for known in target_names()]
        if json:
            show.print_json({"targets": profiles})
            return
        print(show.table([[p.name, p.family, p.runtime, p.description] for p in profiles]))
        return
    profile = load_target(name)
    if json:
        show.print_json(profile)
        return
    from mint_deploy.files import encode

    print(f"{profile.name}: {profile.description}")
    body = encode(profile)
    tables = ("sources", "power_modes", "promises")
    rows = [
        [key, str(value), profile.sources.get(key, "")]
        for key, value in body.items()
        if value is not None and key not in (*tables, "name", "description")
    ]
    print(show.table(rows))
    for key in ("power_modes", "promises"):
        for inner, value in body[key].items():
            source = profile.sources.get(f"{key}.{inner}", "")
            print(f"  {key}.{inner}: {value}  {source}".rstrip())


# ---------------------------------------------------------------- inspect


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of a run, or its folder.")],
    json: o.Json = False,
) -> None:
    """Say what a plan, an ONNX file, an engine or a bundle is, and where it came from."""
    found = _inspected(file)
    if json:
        show.print_json(found)
        return
    print(f"{file}: {found['what']}")
    if "ranking" in found:
        from mint_deploy.cli.ranking import say

        say(found["ranking"])
        return
    tables = plans.tables(found) if found["what"] == plans.WHAT else []
    rows = [[k, str(v)] for k, v in found.items() if k != "what" and v not in (None, "", {}, [])]
    print("\n\n".join([show.table(rows), *tables]))


def _inspected(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"cannot read {path}: no such file")
    if path.is_dir():
        return _inspected_folder(path)
    if path.suffix == ".onnx":
        return _inspected_onnx(path)
    if path.suffix == ".pt2":
        return _inspected_pt2(path)
    if path.suffix == ".npz":
        from mint_deploy.files import read_arrays

        header, arrays = read_arrays(path)
        shapes = {name: list(a.shape) for name, a in arrays.items()}
        found = {
            "what": f"arrays of {header.get('kind', 'unknown kind')}",
            **header,
            "arrays": shapes,
        }
        return {**found, "ranking": _ranking(path)} if header.get("kind") == "Importance" else found
    if path.suffix == ".safetensors":
        return _inspected_weights(path)
    return _inspected_json(path)


def _ranking(path: Path) -> dict[str, Any]:
    from mint_deploy.report.ranking import whole
    from mint_deploy.scores_file import read_scores

    return whole(read_scores(path))


def _inspected_folder(path: Path) -> dict[str, Any]:
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
        return {**_inspected_json(path / "deploy.json"), "what": "a bundle", "files": names}
    raise DataError(f"{path} is neither a run folder nor a bundle: no run.json, no deploy.json")


def _inspected_onnx(path: Path) -> dict[str, Any]:
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
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        **{p.key: p.value for p in model.metadata_props},
    }


def _inspected_weights(path: Path) -> dict[str, Any]:
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


def _inspected_json(path: Path) -> dict[str, Any]:
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


def _inspected_pt2(path: Path) -> dict[str, Any]:
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
