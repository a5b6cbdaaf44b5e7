"""The weights of a cut network as a file, and the network back from it: no pickle, no surprise.

``load`` replays a run's plan on a fresh model and reads the weights into it. Before that every name,
shape and dtype is compared and what differs is listed; after it, the network computes the samples that
the run keeps (``parity.npz``), so that a class whose ``forward`` has changed is noticed, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import DataError, MintDeployError, ModelError, PlanError
from mint_deploy.face import Face
from mint_deploy.files import atomic
from mint_deploy.models import load_model, without_prefixes
from mint_deploy.parity import read_parity
from mint_deploy.plan_file import listing, read_plan
from mint_deploy.program import Program
from mint_deploy.program_export import export_program
from mint_deploy.program_form import example_of
from mint_deploy.pt2 import load_pt2
from mint_deploy.surgery import cut
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.user_model import unwrapped

__all__ = ["load", "read_tensors", "save"]

PLAN, WEIGHTS, PARITY = "plan.json", "slim.safetensors", "parity.npz"


def save(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str]) -> None:
    """Write a model's tensors as safetensors, atomically; shared tensors once."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors_of(model).items()}
    about = {"class": _class(model), **metadata}
    if isinstance(model, Program) and model.graph.form:
        about["program"] = model.graph.form
    with atomic(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=about)


def read_tensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read tensors written by :func:`save`, or a state dict in safetensors, into ``model`` (in place).

    Prefixes of wrappers (``module.``, ``_orig_mod.``) are taken off.

    Raises:
        DataError: missing or damaged file.
        ModelError: the tensors do not fit; what differs is listed.
    """
    stored, about = _read(path)
    _fill(model, stored, about, path)


def load(run: str | os.PathLike[str], model: Any = None) -> nn.Module:
    """Load the slim model of a run folder: replay its plan on a fresh model, then read the weights.

    Args:
        run: the run folder (``plan.json`` and ``slim.safetensors``), or a ``.pt2`` file, which needs no
            model.
        model: a fresh model or a callable that makes one; ``None``: what the run was started with.

    Raises:
        DataError: files are missing or damaged; a ``.pt2`` that could run code.
        ModelError: the model is not the one that the run was made of; what differs is listed.
        PlanError: the plan was edited into something that cannot be.
    """
    folder = Path(run)
    if folder.suffix == ".pt2" and not folder.is_dir():
        return load_pt2(folder)
    plan = read_plan(folder / PLAN)
    stored, about = _read(folder / WEIGHTS)
    if about.get("plan", plan.digest()) != plan.digest():
        raise ModelError(
            f"{folder / WEIGHTS} holds the weights of another cut than {folder / PLAN} asks for: the plan was "
            f"edited since; carry it out with: mint-deploy cut {folder}"
        )
    fresh = _fresh(plan, model)
    if "program" in about and not isinstance(fresh, Program):
        fresh = export_program(fresh, example_of(about["program"]))
    try:
        slim = cut(fresh, plan)
    except PlanError as error:
        names = _names_differ(fresh, stored)
        if names:
            raise _differ(fresh, about, folder / WEIGHTS, names) from error
        raise
    _fill(slim, stored, about, folder / WEIGHTS)
    slim.eval()
    # weights that somebody trained further have no "plan" in their file, and need not agree
    if "plan" in about and (folder / PARITY).is_file():
        _compare_outputs(slim, folder, about)
    return slim


def _fresh(plan: PruningPlan, model: Any) -> nn.Module:
    if model is None and plan.model.endswith("(in memory)"):
        raise ModelError(
            f"the run was made in Python, of a {plan.model}; give a fresh one: load(run, model=factory)"
        )
    if model is None:
        return load_model(plan.model).model
    if not isinstance(model, nn.Module):
        model = model()
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory returned {type(model).__name__}, expected a torch.nn.Module")
    return unwrapped(model)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
            about = dict(stored.metadata() or {})
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: no such file") from error
    except Exception as error:
        raise DataError(f"{path} is damaged or not safetensors ({error})") from error
    return without_prefixes(tensors), about


# ---------------------------------------------------------------- what differs


def _class(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _differ(
    model: nn.Module, about: Mapping[str, str], path: str | os.PathLike[str], wrong: Iterable[str]
) -> ModelError:
    written = about.get("class", "")
    of = f", written for the class {written}" if written not in ("", _class(model)) else ""
    return ModelError(
        f"{path}{of} does not fit the model {_class(model)}: {listing(wrong)}; give the model that it was "
        "made of, in the same version of its code"
    )


def _names_differ(model: nn.Module, stored: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that only the model or only the file has."""
    own = tensors_of(model)
    # a state dict has shared tensors under all their names, and lacks buffers that are not saved
    state = model.state_dict()
    wrong = [f"'{n}' is missing in the file" for n in own if n not in stored and n in state]
    return wrong + [f"'{n}' is not in the model" for n in stored if n not in own and n not in state]


def _fill(
    model: nn.Module,
    stored: Mapping[str, Tensor],
    about: Mapping[str, str],
    path: str | os.PathLike[str],
) -> None:
    """Copy the tensors of a file into a model, in place.

    Raises:
        ModelError: names, shapes or dtypes differ; nothing was copied.
    """
    own = tensors_of(model)
    wrong = _names_differ(model, stored)
    wrong += [
        f"'{n}' has shape {list(stored[n].shape)}, expected {list(t.shape)}"
        for n, t in own.items()
        if n in stored and stored[n].shape != t.shape
    ]
    wrong += [
        f"'{n}' is {_plain(stored[n].dtype)}, expected {_plain(t.dtype)}"
        for n, t in own.items()
        if n in stored and stored[n].dtype != t.dtype
    ]
    if wrong:
        raise _differ(model, about, path, wrong)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in stored:
                tensor.copy_(stored[name])


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare_outputs(slim: nn.Module, folder: Path, about: Mapping[str, str]) -> None:
    """Run the samples that the run keeps: same tensors, but does the class compute the same?

    Raises:
        ModelError: it does not.
    """
    parity = read_parity(folder / PARITY)
    if "slim" not in parity.outputs:
        return
    samples = [torch.from_numpy(value) for value in parity.inputs.values()]
    try:
        face = Face(slim, samples)
        found = dict(
            zip(parity.outputs["slim"], face.run(face.arrays(samples)).values(), strict=True)
        )
        error = parity.check("slim", lambda _: found, batch=len(samples[0]))
    except MintDeployError as problem:
        raise _differ(slim, about, folder / WEIGHTS, [str(problem)]) from problem
    if not error <= parity.tolerance:
        why = (
            f"every tensor fits, but on the samples of {folder / PARITY} its outputs are off by "
            f"{error:.2g} relative (at most {parity.tolerance:g}): its forward computes something else"
        )
        raise _differ(slim, about, folder / WEIGHTS, [why])
