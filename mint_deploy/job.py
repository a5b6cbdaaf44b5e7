"""What the stages of one run share: the network, the data, the graph, each made once and checked.

A stage may run in a process of its own, so everything here is read from the run folder and from
what the settings name; that it is still the same network and data is checked by their digests.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mint_deploy import files, loading, surgery, user_code
from mint_deploy.artifacts import Accuracy, PruningPlan
from mint_deploy.data import Part, Splits, as_splits, load_data
from mint_deploy.dead import Dead, dead_units
from mint_deploy.errors import ConfigError, DataError, ModelError, RunFolderError
from mint_deploy.evaluate import Outcome, evaluate
from mint_deploy.graph import Graph
from mint_deploy.inference import usable_device
from mint_deploy.lossless import fold_constants, proven
from mint_deploy.models import LoadedModel, load_model, state_digest
from mint_deploy.plan_file import read_plan
from mint_deploy.program_export import export_program
from mint_deploy.progress import Progress
from mint_deploy.report.accuracy import LABELS
from mint_deploy.runfolder import RunFolder
from mint_deploy.settings import DEMO, Request
from mint_deploy.target import Target, load_target
from mint_deploy.trace import trace

__all__ = ["Job"]

#: samples that the tracer and the gate run on
EXAMPLES = 2


class Job:
    """One run as its stages see it. ``given`` holds a model or data that live in memory."""

    def __init__(
        self, run: RunFolder, request: Request, progress: Progress, given: Mapping[str, Any]
    ) -> None:
        self.run, self.request, self.progress, self.given = run, request, progress, given
        self._dense_outcomes: dict[str, Outcome] = {}
        # A run goes on with as many threads as it began with: sums have the same last digits. The
        # demo's network is too small for two: they wait for each other more than they compute.
        threads = request.workers or self.facts.get("threads") or (1 if request.demo else None)
        if threads:
            torch.set_num_threads(int(threads))
        usable_device(request.device)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What earlier stages found out."""
        return self.run.manifest.facts

    @property
    def checkpoints(self) -> Path:
        """The folder for what a killed run is taken up from."""
        return self.run / "checkpoints"

    # ------------------------------------------------------------ what the settings name

    @cached_property
    def target(self) -> Target:
        """The device that the network is prepared for, as the run began with it, in the precision asked for."""
        target = load_target(self.run / "target.toml")
        precision = self.request.precision
        return dataclasses.replace(target, precision=precision) if precision else target

    @cached_property
    def source(self) -> LoadedModel:
        """The network as its factory and weights make it (in the demo: not trained yet)."""
        given = self.given.get("model")
        if given is not None:
            model = copy.deepcopy(given).eval()
            return LoadedModel(
                model=model,
                name=self.request.model_name,
                spec=str(self.request.model),
                input_shape=None,
                mean=None,
                std=None,
                class_names=None,
                default_data=None,
                digest=state_digest(model),
                trained=True,
            )
        self._refuse_memory("model", self.request.model)
        spec = self.request.model or DEMO
        return load_model(spec, self.request.weights, seed=self.request.seed)

    @cached_property
    def splits(self) -> Splits:
        """The data in three parts.

        Raises:
            DataError: none was named, or it is not what the run began with.
        """
        found = self._read_data()
        known = self.facts.get("data_digest")
        if known not in (None, found.digest):
            raise RunFolderError(
                f"the data of {self.run.path} ({self.request.data or found.name}) changed since "
                "the run began; put it back, or begin anew with --force"
            )
        return found

    def _read_data(self) -> Splits:
        request, source = self.request, self.source
        shape = request.input[1:] if request.input else source.input_shape
        given = self.given.get("data")
        if given is not None:
            return as_splits(given, seed=request.seed)
        self._refuse_memory("data", request.data)
        spec = request.data or source.default_data
        if spec is None:
            raise DataError(
                f"no data was named for {source.name}; give --data, such as imagefolder:FOLDER or "
                "npz:FILE (labels are not needed)"
            )
        return load_data(
            spec,
            input_shape=shape,
            mean=request.mean,
            std=request.std,
            model_mean=source.mean,
            model_std=source.std,
            resize=request.resize,
            seed=request.seed,
        )

    def _refuse_memory(self, what: str, spec: str | None) -> None:
        if spec is not None and spec.endswith("(in memory)"):
            raise RunFolderError(
                f"the {what} of {self.run.path} lived in the memory of a Python program; continue "
                "there: mint_deploy.compress(model, data, out=..., resume=True)"
            )

    @cached_property
    def metric(self) -> Any:
        """The user's measure of what is right, or None for top-1."""
        return self._function("metric")

    @cached_property
    def loss(self) -> Any:
        """The user's loss, or None for cross-entropy."""
        return self._function("loss")

    def _function(self, name: str) -> Any:
        spec = getattr(self.request, name)
        if spec is None:
            return None
        found = user_code.load_object(spec, error=ConfigError)
        if not callable(found):
            raise ConfigError(f"--{name} {spec} is a {type(found).__name__}, expected a function")
        return found

    # ------------------------------------------------------------ the networks

    @cached_property
    def network(self) -> nn.Module:
        """What is cut: the modules of ``source``, or with ``--export-level`` their exported program.

        Raises:
            ModelError: torch.export refuses the model, or fixes it to one number of samples.
        """
        if not self.request.export_level:
            return self.source.model
        program = export_program(self.source.model, self.example)
        if not program.graph.open_batch:
            raise ModelError(
                f"the exported program of {self.source.name} is fixed to {program.graph.batch} samples: "
                f"{program.graph.why_closed}; leave out --export-level to cut the modules themselves"
            )
        return program

    @cached_property
    def dense(self) -> nn.Module:
        """The network before the cut, with the weights that the run began with.

        Raises:
            RunFolderError: the weights are not those any more.
        """
        model = self.network
        if (self.run / "dense.safetensors").exists():
            loading.read_tensors(model, self.run / "dense.safetensors")
        known = self.facts.get("model_digest")
        if known not in (None, state_digest(model)):
            raise RunFolderError(
                f"the weights of {self.source.name} changed since {self.run.path} was begun; put "
                "them back, or begin anew with --force"
            )
        return model

    @cached_property
    def example(self) -> Tensor:
        """Real samples ``[2, ...]`` for the tracer and the gate."""
        return next(iter(self.splits.train.batches(EXAMPLES)))[0]

    @cached_property
    def graph(self) -> Graph:
        """What can be cut of the dense network."""
        return self.traced(self.dense)

    @cached_property
    def dead(self) -> Dead:
        """What the dense network computes the same without, checked; nothing where it is not asked for."""
        if not self.request.lossless:
            return Dead()
        found = dead_units(self.dense, self.graph, self.example)
        held, refused = proven(self.dense, self.graph, found, self.example, seed=self.request.seed)
        for name, why in refused.items():
            self.progress.warn(f"dead units of group {name} stay: {why}")
        return held

    @cached_property
    def folded(self) -> nn.Module:
        """The dense network with its constant units folded onward: what is sampled and cut."""
        units = [unit for group in self.dead.groups.values() for unit in group]
        return fold_constants(self.dense, self.dead) if any(u.folds for u in units) else self.dense

    def traced(self, model: nn.Module) -> Graph:
        """Find what can be cut of ``model``.

        Raises:
            ModelError: nothing can be; every reason is named.
        """
        graph = trace(model, self.example, attention=self.request.attention)
        if not graph.groups:
            reasons = "; ".join(f"{name}: {why}" for name, why in graph.frozen.items())
            raise ModelError(
                f"nothing in {self.source.name} can be cut, every layer is frozen: "
                f"{reasons or 'it has no layer with channels'}"
            )
        return graph

    @property
    def plan(self) -> PruningPlan:
        """What stays; read anew each time, for it may be edited between two stages."""
        return read_plan(self.run / "plan.json")

    def slim(self, checkpoint: str) -> nn.Module:
        """Return the cut network with the weights of ``checkpoints/<checkpoint>.safetensors``."""
        return self.slim_from(self.checkpoints / f"{checkpoint}.safetensors")

    def slim_from(self, path: Path) -> nn.Module:
        """Return the cut network with the weights of a file."""
        model = surgery.cut(self.dense, self.plan)
        loading.read_tensors(model, path)
        return model.eval()

    def keep(self, model: nn.Module, *names: str, plan: PruningPlan | None = None) -> None:
        """Write a cut network's weights under each of ``names`` in the run folder."""
        about = {"model": self.source.spec, "plan": (plan or self.plan).digest()}
        for name in names:
            loading.save(model, self.run / name, metadata=about)

    def keep_dense(self, model: nn.Module) -> None:
        """Write the weights of a dense network that was trained on the spot."""
        about = {"model": self.source.spec}
        loading.save(model, self.run / "dense.safetensors", metadata=about)

    # ------------------------------------------------------------ how right they are

    def judge(self, step: str, model: nn.Module) -> None:
        """Evaluate ``model`` on validation and record it; what followed this step is forgotten."""
        row = {
            "step": step,
            "label": LABELS[step],
            "validation": self._accuracy(step, model, self.splits.validation),
            "test": None,
        }
        order = list(LABELS)
        rows = [r for r in self.steps() if order.index(r["step"]) < order.index(step)]
        self.write_steps([*rows, row])

    def keep_first_step(self) -> None:
        """Forget every judgement but the dense network's: another plan makes another network."""
        self.write_steps([{**row, "test": None} for row in self.steps()[:1]])

    def judge_finally(self, step: str, model: nn.Module) -> None:
        """Add the test part's figures to a step that has been judged on validation."""
        if self.splits.test is not None:
            found = self._accuracy(step, model, self.splits.test)
            self.write_steps(
                [{**r, "test": found} if r["step"] == step else r for r in self.steps()]
            )

    def _accuracy(self, step: str, model: nn.Module, part: Part) -> Accuracy:
        if part.name not in self._dense_outcomes:
            self._dense_outcomes[part.name] = self._evaluated(self.dense, part, None)
        dense = self._dense_outcomes[part.name]
        found = dense if step == "dense" else self._evaluated(model, part, dense)
        return found.accuracy

    def _evaluated(self, model: nn.Module, part: Part, reference: Outcome | None) -> Outcome:
        return evaluate(
            model,
            part,
            class_names=self.facts.get("class_names"),
            reference=reference,
            metric=self.metric,
            device=self.request.device,
        )

    def steps(self) -> list[dict[str, Any]]:
        """The steps judged so far."""
        if not (self.run / "accuracy.json").exists():
            return []
        found = files.read_json(self.run / "accuracy.json", kind="AccuracySteps")
        return list(found["steps"])

    def write_steps(
        self, steps: list[dict[str, Any]], promise: Mapping[str, Any] | None = None
    ) -> None:
        """Write accuracy.json."""
        nothing = {"max_accuracy_drop": None, "kept": None, "text": ""}
        body = {
            "steps": steps,
            "class_names": self.facts.get("class_names") or [],
            "promise": dict(promise or nothing),
        }
        files.write_json(self.run / "accuracy.json", body, kind="AccuracySteps")
