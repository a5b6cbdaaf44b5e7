"""PyTorch, eager: runs a torch module of this process, as the reference of the other runtimes.

There is no engine file, so it takes the module where the others take an engine. torch is imported
inside the functions only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, DataError, ModelError, RuntimeMissing
from mint_deploy.runtimes import DYNAMIC, Arrays, closed, save_engine

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["MEND", "PyTorchRunner", "build", "missing", "runner"]

MEND = "pip install torch"


def missing() -> str | None:
    """Say why PyTorch cannot be used here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "the package torch is not installed"
    return None


def _library() -> Any:
    try:
        import torch
    except ImportError as error:
        raise RuntimeMissing("pytorch", str(error), MEND) from error
    return torch


def build(
    model: torch.nn.Module,
    target: object = None,  # noqa: ARG001  the signature that every runtime shares
    out: str | os.PathLike[str] | None = None,
) -> Engine:
    """Return an engine that describes a torch module: there is no file to build.

    Raises:
        RuntimeMissing: torch is not installed.
        ModelError: ``model`` is a file; PyTorch runs modules of this process.
    """
    torch = _library()
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"the pytorch runtime runs a torch module of this process, not {model!r}; "
            "for an ONNX file use the runtime onnxruntime"
        )
    state = model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    engine = Engine(
        path="",
        runtime="pytorch",
        precision="fp32",
        sha256=digest.hexdigest(),
        builder={"torch": str(torch.__version__)},
    )
    return save_engine(engine, out)


def runner(
    engine: torch.nn.Module,
    *,
    threads: int = 1,
    example_inputs: Sequence[torch.Tensor],
    names: Sequence[str] = ("input",),
) -> PyTorchRunner:
    """Return a runner of a torch module on its own device; ``example_inputs`` are its arguments.

    The batch dimension (the first) is taken to be open.

    Raises:
        ConfigError: ``threads`` below 1, or not one name for each input.
        ModelError: not a torch module.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more")
    if len(names) != len(example_inputs):
        raise ConfigError(f"{len(names)} names for {len(example_inputs)} inputs; expected as many")
    return PyTorchRunner(engine, build(engine), threads, tuple(example_inputs), tuple(names))


class PyTorchRunner:
    """A module in evaluation mode; mode and thread count are put back on leaving."""

    def __init__(
        self,
        module: torch.nn.Module,
        engine: Engine,
        threads: int,
        example_inputs: tuple[torch.Tensor, ...],
        names: tuple[str, ...],
    ) -> None:
        self._module, self._torch, self._names = module, _library(), names
        tensor = next(iter(module.parameters()), example_inputs[0])
        self._device = tensor.device
        self.threads = threads
        self.engine = Engine(
            path=engine.path,
            runtime=engine.runtime,
            precision=engine.precision,
            sha256=engine.sha256,
            flags={
                "mode": "eager, inference mode",
                "device": self._device.type,
                "intra_op_threads": str(threads),
            },
            builder=engine.builder,
        )
        self.inputs = tuple(
            _spec(name, value) for name, value in zip(names, example_inputs, strict=True)
        )
        self.outputs: tuple[TensorSpec, ...] = ()
        self._examples = example_inputs
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        torch = self._torch
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self.threads)
            for module in [m for m in self._module.modules() if m.training]:
                stack.callback(setattr, module, "training", True)
                module.training = False
            self._stack = stack.pop_all()
        try:
            results = self.infer(
                {n: v.cpu().numpy() for n, v in zip(self._names, self._examples, strict=True)}
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.outputs = tuple(
            TensorSpec(name=n, shape=(DYNAMIC, *v.shape[1:]), dtype=str(v.dtype))
            for n, v in results.items()
        )
        return self

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run the module once; see :meth:`mint_deploy.runtimes.Runner.infer`."""
        if self._stack is None:
            raise closed("pytorch")
        torch = self._torch
        if set(inputs) != set(self._names):
            raise DataError(
                f"the module takes the inputs {', '.join(self._names)}; "
                f"was given {', '.join(inputs) or 'nothing'}"
            )
        with torch.inference_mode():
            arrays = (inputs[name] for name in self._names)
            arguments = [
                torch.from_numpy(a if a.flags.writeable else a.copy()).to(self._device)
                for a in arrays
            ]
            try:
                result = self._module(*arguments)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
                expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
                raise DataError(
                    f"the module takes {expected}; was given {given} ({error})"
                ) from error
            return {name: value.cpu().numpy() for name, value in _named(result)}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None


def _named(result: Any) -> list[tuple[str, Any]]:
    """Name what a module returned: one tensor, a sequence of them, or a mapping."""
    if isinstance(result, dict):
        return [(str(name), value) for name, value in result.items()]
    if isinstance(result, (tuple, list)):
        return [(f"output_{i}", value) for i, value in enumerate(result)]
    return [("output", result)]


def _spec(name: str, value: Any) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, shape=(DYNAMIC, *value.shape[1:]), dtype=dtype)
