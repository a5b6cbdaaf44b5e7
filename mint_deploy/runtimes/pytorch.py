"""PyTorch: runs a torch module of this process, as the reference of the other runtimes.

    eager       as it is
    compile     through ``torch.compile`` (a C++ compiler is needed on a CPU)
    cuda_graph  recorded once for each shape of the inputs, and replayed by one launch

There is no engine file, so it takes the module where the others take an engine. The module is put
into evaluation mode and, where ``channels_last`` asks for it, its weights into that layout; both
are put back on leaving. torch is imported inside the functions only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy._torch_hold import HOLD
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, DataError, ModelError, RuntimeMissing, UnknownName
from mint_deploy.runtimes import DYNAMIC, Arrays, closed, no_samples, save_engine

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["MEND", "MODES", "PyTorchRunner", "build", "missing", "runner"]

MEND = "pip install torch"
MODES = ("eager", "compile", "cuda_graph")
#: runs before a CUDA graph is recorded: libraries choose their algorithms in the first ones
_WARM_UP = 3


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
    mode: str = "eager",
    channels_last: bool = False,
    tf32: bool = False,
) -> PyTorchRunner:
    """Return a runner of a torch module on its own device; ``example_inputs`` are its arguments.

    The batch dimension (the first) is taken to be open.

    Args:
        engine: the module.
        threads: PyTorch's compute threads; they hold for the whole process.
        example_inputs: its arguments, ``[N, ...]`` each.
        names: one for each of them.
        mode: ``eager``, ``compile`` or ``cuda_graph``.
        channels_last: convolutions in the layout ``[N, H, W, C]``, weights and images alike.
        tf32: let an NVIDIA GPU round float32 factors to ten bits.

    Raises:
        ConfigError: ``threads`` below 1, not one name for each input, or a CUDA graph of a module
            that is not on a GPU.
        UnknownName: no such mode.
        ModelError: not a torch module.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more")
    if len(names) != len(example_inputs):
        raise ConfigError(f"{len(names)} names for {len(example_inputs)} inputs; expected as many")
    if mode not in MODES:
        raise UnknownName("mode of PyTorch", mode, MODES)
    made = PyTorchRunner(engine, build(engine), threads, tuple(example_inputs), tuple(names))
    return made.choose(mode, channels_last=channels_last, tf32=tf32)


class PyTorchRunner:
    """A module in evaluation mode; mode, layout and thread count are put back on leaving."""

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
        self.threads, self.engine = threads, engine
        self.inputs = tuple(
            _spec(name, value) for name, value in zip(names, example_inputs, strict=True)
        )
        self.outputs: tuple[TensorSpec, ...] = ()
        self._examples = example_inputs
        self._stack: contextlib.ExitStack | None = None
        self._call: Callable[..., Any] = module
        self._graphs: dict[Any, tuple[Any, list[torch.Tensor], Any]] = {}
        self._mode, self._channels_last, self._tf32 = "eager", False, False
        #: a graph's inputs and outputs have one place in memory, so its callers wait for each other
        self._turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def choose(self, mode: str, *, channels_last: bool, tf32: bool) -> Self:
        """Set how it runs, and record it in the engine's flags."""
        if mode == "cuda_graph" and self._device.type != "cuda":
            raise ConfigError(
                f"a CUDA graph needs a module on a GPU, and this one is on {self._device.type}; "
                "move it there, or choose the mode eager"
            )
        self._mode, self._channels_last, self._tf32 = mode, channels_last, tf32
        flags = {
            "mode": f"{mode}, inference mode",
            "device": self._device.type,
            "intra_op_threads": str(self.threads),
            "memory_format": "channels_last" if channels_last else "contiguous",
        }
        if self._device.type == "cuda":
            flags["tf32"] = "on" if tf32 else "off"
        self.engine = dataclasses.replace(self.engine, flags=flags)
        return self

    def __enter__(self) -> Self:
        torch = self._torch
        with contextlib.ExitStack() as stack:
            stack.enter_context(HOLD.threads(torch, self.threads))
            stack.enter_context(HOLD.evaluation(self._module))
            stack.enter_context(HOLD.layout(torch, self._module, channels_last=self._channels_last))
            if self._device.type == "cuda":
                for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
                    stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
                    backend.allow_tf32 = self._tf32
            if self._mode == "compile":
                self._call = torch.compile(self._module)
            elif self._mode == "cuda_graph":
                self._call, self._turn = self._replay, threading.Lock()
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
        if set(inputs) != set(self._names):
            raise DataError(
                f"the module takes the inputs {', '.join(self._names)}; "
                f"was given {', '.join(inputs) or 'nothing'}"
            )
        with self._turn, self._torch.inference_mode():
            arguments = [self._tensor(inputs, name) for name in self._names]
            try:
                result = self._call(*arguments)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise self._wrong(inputs, error) from error
            return {name: self._own(value, inputs) for name, value in _named(result)}

    def _own(self, value: torch.Tensor, inputs: Arrays) -> np.ndarray[Any, np.dtype[Any]]:
        """Return an output as an array that is not an input, or a view of one, under another name."""
        array: np.ndarray[Any, np.dtype[Any]] = value.cpu().numpy()
        shared = any(np.may_share_memory(array, given) for given in inputs.values())
        return array.copy() if shared else array

    def _tensor(self, inputs: Arrays, name: str) -> torch.Tensor:
        array = inputs[name]
        if not array.size:
            raise no_samples(inputs)
        if not (array.flags.writeable and array.flags.c_contiguous):
            array = array.copy(order="C")  # torch warns of the one and refuses negative strides
        tensor: torch.Tensor = self._torch.from_numpy(array).to(self._device)
        if self._channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=self._torch.channels_last)
        return tensor

    def _wrong(self, inputs: Arrays, error: Exception) -> Exception:
        if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
            return RuntimeMissing(
                "pytorch",
                "torch.compile needs a C++ compiler on a CPU, and there is none",
                "apt-get install g++",
            )
        given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
        expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
        return DataError(f"the module takes {expected}; was given {given} ({error})")

    def _replay(self, *arguments: torch.Tensor) -> Any:
        """Copy the inputs to where a graph of their shapes reads them, and launch it."""
        torch = self._torch
        key = tuple((tuple(a.shape), a.dtype) for a in arguments)
        if key not in self._graphs:
            held = [a.clone() for a in arguments]
            side = torch.cuda.Stream(self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._module(*held)
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._module(*held)
            self._graphs[key] = (graph, held, result)
        graph, held, result = self._graphs[key]
        for place, value in zip(held, arguments, strict=True):
            place.copy_(value)
        graph.replay()
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._graphs.clear()
        self._call = self._module
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
