"""A bundle as the board sees it: deploy.json, the ONNX files it names, and what each is held to.

    dense.onnx model.onnx              float32: every output within 1e-4 of PyTorch's
    dense.int8.onnx model.int8.onnx    (.fp16.onnx) where the target's precision stands in the file:
                                       what is built and measured; by signal to noise

Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_deploy import _signal, files, plugins
from mint_deploy.artifacts import ExportedModel
from mint_deploy.errors import DataError, RuntimeMissing
from mint_deploy.manifest import differences

__all__ = ["Bundle", "Check", "need"]

_NETWORKS = ("dense", "slim")
#: runtimes that bring a precision about by a flag of the build
_BY_FLAG = ("tensorrt", "onnxruntime_tensorrt", "openvino")
#: of those, the ones that build no engine of a float32 file for an int8 target
_TENSORRT = ("tensorrt", "onnxruntime_tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A file to compare with PyTorch: ``network`` in parity.npz; ``floor_db`` None: float32."""

    name: str
    network: str
    model: ExportedModel
    target: Mapping[str, Any]
    floor_db: float | None


class Bundle:
    """A folder with deploy.json, the ONNX files it names, and parity.npz.

    ``models`` are what the target gets; ``floats`` the float32 files that they were made of.

    Raises:
        DataError: no bundle, or one that names no network.
    """

    def __init__(self, folder: Path | None) -> None:
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
        self.floats = {
            name: self._model(self.deploy[name], name)
            for name in _NETWORKS
            if self.deploy.get(name)
        }
        if not self.floats:
            raise DataError(f"{self.folder / 'deploy.json'} names no network; export the run anew")
        lower = self.deploy.get("lower") or {}
        self._floors = {
            name: float(lower[name]["floor_db"]) for name in self.floats if name in lower
        }
        self.models = {
            name: self._model(lower[name]["model"], f"lower: {name}") if name in lower else model
            for name, model in self.floats.items()
        }

    @staticmethod
    def _model(body: Any, where: str) -> ExportedModel:
        return files.decode(ExportedModel, body, where=f"deploy.json: {where}")

    def path(self, name: str) -> Path:
        """The file of a network that the target gets; its hash must be the one that was exported."""
        return self.file(self.models[name])

    def file(self, model: ExportedModel) -> Path:
        """An ONNX file of this bundle, whole.

        Raises:
            DataError: it is missing or altered.
        """
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
        listed = self.deploy.get("files") or {}
        if found := differences(self.folder, listed):
            raise DataError(f"the bundle is damaged: {'; '.join(found)}; copy it anew")
        return [f"{len(listed)} files are as they were packed"] if listed else []

    def runtime(self, asked: str | None) -> tuple[str, list[str]]:
        """The runtime that runs the files here, and a note where it is not the target's."""
        wanted = str(self.target.get("runtime", "onnxruntime"))
        name, notes = asked or wanted, []
        if asked is None and (
            wanted not in plugins.known("runtime")
            or plugins.load("runtime", wanted).missing() is not None
        ):
            name = "onnxruntime"
            notes = [f"note: the target's runtime is {wanted}; these figures are onnxruntime's"]
        need(name)
        return name, notes

    def target_in(self, runtime: str) -> dict[str, Any]:
        """The target with the precision that the delivered files have in ``runtime``."""
        asked = str(self.target.get("precision", "fp32"))
        true = asked if self._floors or runtime in _BY_FLAG else "fp32"
        return {**self.target, "precision": true}

    def checks(self, runtime: str) -> list[Check]:
        """What to compare with PyTorch in ``runtime``, and how near it has to be."""
        flag = self.target_in(runtime)
        own = runtime == self.target.get("runtime", "onnxruntime")
        less = 0.0 if own else _signal.OTHER_RUNTIME_DB
        found = []
        for name, model in self.floats.items():
            lower = name in self._floors
            if lower and runtime in _TENSORRT:
                continue
            target = {**flag, "precision": "fp32"} if lower else flag
            floor = None if target["precision"] == "fp32" else _signal.floor_db()
            found.append(Check(name=name, network=name, model=model, target=target, floor_db=floor))
        found += [
            Check(
                name=f"{name} {flag['precision']}",
                network=name,
                model=self.models[name],
                target=flag,
                floor_db=floor - less,
            )
            for name, floor in self._floors.items()
        ]
        return found

    def batch(self, name: str) -> int:
        """The batch of a network: its own where it is fixed, else the target's."""
        first = next((s.shape[0] for s in self.models[name].inputs if s.shape), -1)
        return first if first > 0 else int(self.target.get("batch", 1))


def need(runtime: str) -> None:
    """Refuse a runtime that cannot be used here, with the one command that mends it."""
    plugin = plugins.load("runtime", runtime)
    reason = plugin.missing()
    if reason is not None:
        mend = getattr(plugin, "MEND", f"pip install {runtime}")
        raise RuntimeMissing(runtime, reason, str(mend))
