"""The bundle: one folder with what a board needs to build, verify and measure, and nothing more.

    bundle/dense.onnx model.onnx      the network before and after
    bundle/dense.int8.onnx ...        (.fp16.onnx) both in the target's precision, where that stands
                                      in the file: the recipe and the example are for these
    bundle/parity.npz                 real samples and PyTorch's outputs for them
    bundle/deploy.json                target, tensors, normalisation, class names, hash of each file
    bundle/build.json                 how the target builds and measures, every flag explicit
    bundle/calibration.json           the ranges of activations that precision was lowered by
    bundle/example.py                 a small program that runs the network on a picture
    bundle/mint_deploy_device.pyz     the program that does it: needs Python 3.10 and numpy
    bundle/README.md
    bundle.tar.gz                     the same in one file

Equal input gives equal bytes. What arrives is verified by hash, and an archive is unpacked without
leaving its folder.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from mint_deploy import _signal, device, files
from mint_deploy._version import __version__
from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.errors import DataError, InternalError
from mint_deploy.example import EXAMPLE, example
from mint_deploy.manifest import differences, listing
from mint_deploy.parity import read_parity
from mint_deploy.recipe import recipe
from mint_deploy.target import Target

__all__ = [
    "ARCHIVE",
    "DEVICE_ZIP",
    "FOLDER",
    "unpack_bundle",
    "verify_bundle",
    "write_bundle",
    "write_device_zip",
]

FOLDER = "bundle"
ARCHIVE = "bundle.tar.gz"
DEVICE_ZIP = "mint_deploy_device.pyz"

#: the ranges of activations, as quantisation leaves them in a run folder
CALIBRATION = "calibration.json"

#: the label of a network -> its file
NETWORKS = {"dense": "dense.onnx", "slim": "model.onnx"}
_MAIN = "from mint_deploy.device import main\n\nmain()\n"
_SHEBANG = b"#!/usr/bin/env python3\n"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_EXECUTABLE = 0o755
_PLAIN = 0o644


def write_bundle(run: Path, target: Target) -> Path:
    """Write ``bundle/`` and ``bundle.tar.gz`` into a run folder, from its exported files.

    Reads ``dense.onnx``, ``model.onnx``, ``parity.npz`` and ``deploy.json`` (kind ``Deploy``). An
    older bundle is replaced only when the new one is complete. Where ``precision.json`` (kind
    ``Precision``) is of the target's precision, its files travel too.

    Returns:
        The folder.

    Raises:
        DataError: a file is missing, or is not the one that deploy.json describes.
    """
    deploy = files.read_json(run / "deploy.json", kind="Deploy")
    networks = {
        label: files.decode(ExportedModel, deploy[label], where=f"deploy.json: {label}")
        for label in NETWORKS
        if deploy.get(label)
    }
    if not networks:
        raise DataError(f"{run / 'deploy.json'} names no network; export the run anew")
    with tempfile.TemporaryDirectory(prefix=".bundle.", suffix=".part", dir=run) as part:
        folder = Path(part) / FOLDER
        folder.mkdir()
        for label, model in networks.items():
            _copy(run / NETWORKS[label], folder, model.sha256)
        _copy(run / "parity.npz", folder, None)
        lower = _lower(run, target, folder, networks)
        if lower and (run / CALIBRATION).is_file():
            _copy(run / CALIBRATION, folder, None)
        write_device_zip(folder / DEVICE_ZIP)
        networks = {label: _renamed(model, NETWORKS[label]) for label, model in networks.items()}
        delivered = networks | {label: entry["model"] for label, entry in lower.items()}
        how = recipe(target, delivered)
        files.write_json(folder / "build.json", how, kind="Recipe")
        program = _example(target, delivered, deploy)
        if program is not None:
            (folder / EXAMPLE).write_text(program, encoding="utf-8")
        readme = _readme(target, networks, lower, how, [p.name for p in folder.iterdir()])
        (folder / "README.md").write_text(readme, encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
        body = {k: v for k, v in deploy.items() if k not in ("kind", "schema", "written_by")}
        body |= {**networks, "target": target, "files": listing(folder, names)}
        body |= {"lower": lower} if lower else {}
        files.write_json(folder / "deploy.json", body, kind="Deploy")
        _pack(folder, run / ARCHIVE)
        final = run / FOLDER
        if final.exists():
            final.replace(Path(part) / "old")
        folder.replace(final)
    return final


def _example(
    target: Target, networks: dict[str, ExportedModel], deploy: dict[str, Any]
) -> str | None:
    label = "slim" if "slim" in networks else "dense"
    return example(
        networks[label],
        networks[label].path,
        runtime=target.runtime,
        threads=target.threads,
        mean=deploy.get("mean"),
        std=deploy.get("std"),
        class_names=deploy.get("class_names"),
    )


def _lower(
    run: Path, target: Target, folder: Path, networks: dict[str, ExportedModel]
) -> dict[str, dict[str, Any]]:
    """Pack the files in the target's precision, with the signal to noise that each has here.

    It is that of the arithmetic that the file asks for, on the samples of parity.npz; ``floor_db``
    is what a board must reach.
    """
    record = run / "precision.json"
    body = files.read_json(record, kind="Precision") if record.is_file() else {}
    if body.get("precision") != target.precision:
        return {}
    from mint_deploy.quantize.network import Network  # loads onnx, which most bundles do without

    parity = read_parity(folder / "parity.npz")
    found: dict[str, dict[str, Any]] = {}
    for label, source in networks.items():
        entry = body["networks"].get(label) or {}
        where = f"precision.json: {label}"
        model = files.decode(ExportedModel, entry.get("exported"), where=where)
        if (entry.get("quantized") or {}).get("source_sha256") != source.sha256:
            raise DataError(
                f"{record} tells of another {NETWORKS[label]} than deploy.json; export the run anew"
            )
        model = _renamed(model, Path(model.path).name)
        _copy(run / model.path, folder, model.sha256)
        answers = Network(folder / model.path).infer(parity.inputs)
        ratios = _signal.signal_to_noise(answers, parity.outputs[label])
        least = _signal.floor_db(min(ratios.values(), default=_signal.EXACT_DB))
        found[label] = {
            "model": model,
            "snr_db": {name: round(db, 2) for name, db in ratios.items()},
            "floor_db": round(least, 2),
        }
    return found


def _copy(source: Path, folder: Path, sha256: str | None) -> None:
    if not source.is_file():
        raise DataError(f"{source} is missing; export the run anew")
    copied = Path(shutil.copyfile(source, folder / source.name))
    if sha256 is not None and files.sha256(copied) != sha256:
        raise DataError(f"{source} is not the file that deploy.json describes; export the run anew")


def _renamed(model: ExportedModel, name: str) -> ExportedModel:
    fields = {key: getattr(model, key) for key in model.__dataclass_fields__}
    return ExportedModel(**{**fields, "path": name})


# ---------------------------------------------------------------- the program


def write_device_zip(path: Path) -> None:
    """Write the device half of the installed package as one program: ``python3 FILE probe``.

    Stored, sorted and with one date for all, so that equal sources give equal bytes.

    Raises:
        InternalError: a module of the device half is not installed.
    """
    package = Path(device.__file__).resolve().parent
    contents = {"__main__.py": _MAIN.encode()}
    for name in device.MODULES:
        source = package / name
        if not source.is_file():
            raise InternalError(f"the device half lacks {name}; device.MODULES lists it")
        contents[f"mint_deploy/{name}"] = source.read_bytes()
    with files.atomic(path) as part, part.open("wb") as stream:
        stream.write(_SHEBANG)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in sorted(contents.items()):
                entry = zipfile.ZipInfo(name, _EARLIEST)
                entry.create_system = 3  # Unix, wherever it is made
                entry.external_attr = (stat.S_IFREG | _PLAIN) << 16
                archive.writestr(entry, content)
    path.chmod(_EXECUTABLE)


# ---------------------------------------------------------------- the archive


def _pack(folder: Path, archive: Path) -> None:
    with (
        files.atomic(archive) as part,
        part.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(f"{FOLDER}/{path.name}")
            entry.size = path.stat().st_size
            entry.mode = _EXECUTABLE if path.name == DEVICE_ZIP else _PLAIN
            with path.open("rb") as content:
                tar.addfile(entry, content)


def verify_bundle(path: Path) -> dict[str, Any]:
    """Check every file of a bundle against its hash and return deploy.json.

    Raises:
        DataError: not a bundle; or what is missing or altered, by name.
    """
    deploy = files.read_json(path / "deploy.json", kind="Deploy")
    listed = deploy.get("files")
    if not isinstance(listed, dict) or not listed:
        raise DataError(f"{path / 'deploy.json'} lists no files; it is not that of a bundle")
    found = differences(path, listed)
    if found:
        raise DataError(f"the bundle {path} is damaged: {'; '.join(found)}; copy it anew")
    return deploy


def unpack_bundle(archive: Path, into: Path) -> Path:
    """Unpack ``bundle.tar.gz`` into the folder ``into``, verify it, and return the bundle's folder.

    Only plain files directly in ``bundle/`` are taken; nothing that exists is overwritten.

    Raises:
        DataError: not such an archive, a member that is no plain file or leaves the folder, a
            bundle that is there already, or one that is damaged.
    """
    final = into / FOLDER
    if final.exists():
        raise DataError(f"{final} is there already; choose another folder or remove it")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle.", suffix=".part", dir=into) as part:
        folder = Path(part) / FOLDER
        folder.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    _unpack(tar, member, folder, archive)
        except OSError as error:
            raise DataError(f"cannot read {archive}: {error.strerror or error}") from error
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{archive} is damaged or no .tar.gz ({error})") from error
        verify_bundle(folder)
        folder.replace(final)
    return final


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    parts = PurePosixPath(member.name).parts
    plain = len(parts) == 2 and parts[0] == FOLDER and parts[1] != ".."
    content = tar.extractfile(member) if plain and member.isreg() else None
    if content is None or (folder / parts[1]).exists():
        raise DataError(
            f"{archive} holds '{member.name}', which is not a plain file of {FOLDER}/ or comes "
            "twice; nothing was unpacked"
        )
    path = folder / parts[1]
    with path.open("xb") as stream:
        shutil.copyfileobj(content, stream)
    path.chmod(_EXECUTABLE if path.name == DEVICE_ZIP else _PLAIN)


# ---------------------------------------------------------------- README


#: files that not every bundle has -> what they are
_SOMETIMES = {
    EXAMPLE: "a small program that runs the network: `python3 example.py picture.png`",
    CALIBRATION: "the ranges of activations on training images, by which precision was lowered",
}


def _readme(
    target: Target,
    networks: dict[str, ExportedModel],
    lower: dict[str, dict[str, Any]],
    how: dict[str, Any],
    names: list[str],
) -> str:
    power = f" ({target.power_mode})" if target.power_mode else ""
    lines = [
        f"# A compressed network for {target.name}{power}",
        "",
        "In this folder, on the device (Python 3.10 or newer, numpy and onnxruntime):",
        "",
        f"    python3 {DEVICE_ZIP} verify",
        f"    python3 {DEVICE_ZIP} bench",
        "",
        (
            "The first checks the files and compares the outputs with PyTorch's; the second "
            "measures the network before and after in turns and writes measurements.jsonl. "
            f"`python3 {DEVICE_ZIP} probe` says what this machine is. Until then nothing was "
            "measured on this device: times that a report gives for it are predicted."
        ),
        "",
        "| file | what it is |",
        "|---|---|",
        *(
            f"| {model.path} | the {label} network: {_tensors(model)}, opset {model.opset}, "
            f"IR {model.ir_version} |"
            for label, model in networks.items()
        ),
        *(
            f"| {entry['model'].path} | the {label} network in {target.precision}, which is built and "
            f"measured; signal to noise on the samples {min(entry['snr_db'].values()):.1f} dB here, at "
            f"least {entry['floor_db']:.1f} dB on the device |"
            for label, entry in lower.items()
        ),
        "| parity.npz | real samples and PyTorch's outputs for them |",
        "| deploy.json | target, tensors, normalisation, class names, SHA-256 of each file |",
        "| build.json | how it is built and measured, every flag explicit |",
        *(f"| {name} | {what} |" for name, what in _SOMETIMES.items() if name in names),
        f"| {DEVICE_ZIP} | the program above; nothing is installed |",
        "",
        f"## {target.runtime}, {target.precision}",
        "",
    ]
    if "reason" in how:
        lines.append(f"No recipe: {how['reason']}.")
    elif "session" in how:
        lines.append("Settings of the session:")
        lines += ["", *(f"- {key}: {value}" for key, value in how["session"].items())]
    else:
        lines += [
            (
                "An engine runs only under the TensorRT and on the GPU it was built with, so it is "
                f"built here: `python3 {DEVICE_ZIP} build` does it with this machine's TensorRT. "
                "The two commands above use TensorRT through its Python package; without that, bench "
                "builds and measures through trtexec where it is, and verify runs under ONNX Runtime "
                f"and says so. By hand, for TensorRT {how['tensorrt']} (on a Jetson the program lies "
                "in /usr/src/tensorrt/bin):"
            ),
        ]
        for steps in how["commands"].values():
            for step in ("build", "measure"):
                lines += ["", *_wrapped(steps[step])]
        lines += ["", "The figures of trtexec are GPU time: transfers are left out on purpose."]
    lines += ["", f"Written by mint-deploy {__version__}.", ""]
    return "\n".join(lines)


def _tensors(model: ExportedModel) -> str:
    def text(specs: tuple[TensorSpec, ...]) -> str:
        dims = ("x".join("N" if d < 0 else str(d) for d in s.shape) for s in specs)
        return ", ".join(f"{s.name} {d}" for s, d in zip(specs, dims, strict=True))

    return f"{text(model.inputs)} -> {text(model.outputs)}"


def _wrapped(command: list[str]) -> list[str]:
    """Return a command as indented lines of at most 100 characters."""
    lines, line = [], "    "
    for word in command:
        if len(line) + len(word) > 96:
            lines.append(f"{line}\\")
            line = "        "
        line += f"{word} "
    return [*lines, line.rstrip()]
