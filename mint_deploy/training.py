"""The one training loop: ``recover`` and ``train_from_scratch`` are this with other losses.

SGD with Nesterov momentum, at the rates of :mod:`mint_deploy.schedule`; gradients are clipped by
their norm; biases and norms have no weight decay (He et al. 2019, arXiv 1812.01187). The state
with the best validation score is kept; the one at the start is a candidate too, so training never
makes the choice worse there.

All randomness (order, augmentation, dropout) derives from the seed and the step, so a training
that is taken up from its checkpoint ends with the same bits as an undisturbed one on the same
machine with as many threads. The caller's random state is as before afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint_deploy.checkpoint import Snapshot, read_checkpoint, write_checkpoint
from mint_deploy.errors import ConfigError, DataError, Interrupted, ModelError
from mint_deploy.inference import faster_layout, first_output, usable_device
from mint_deploy.models import state_digest
from mint_deploy.schedule import Recipe

if TYPE_CHECKING:
    from mint_deploy.data import Part

__all__ = ["AfterStep", "Judge", "Loss", "Objective", "ProgressHook", "fit", "label_loss"]

#: ``loss(logits [N, ...], labels [N, ...]) -> scalar``
Loss = Callable[[Tensor, Tensor], Tensor]
#: ``objective(logits, x, labels or None) -> scalar``: what a step minimises
Objective = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
#: ``judge(model) -> score``, higher is better
Judge = Callable[[nn.Module], float]
#: ``progress(steps done, steps in all, note)``
ProgressHook = Callable[[float, float, str], None]
#: ``after_step(model, learning rate)``: changes weights in place once the optimiser has
AfterStep = Callable[[nn.Module, float], None]


def label_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of ``logits [N, C, ...]``; with one logit a sample, its binary form."""
    if logits.ndim < 2 or logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits.reshape(y.shape), y.to(logits.dtype))
    return F.cross_entropy(logits, y)


def fit(
    model: nn.Module,
    train: Part,
    objective: Objective,
    plan: Recipe,
    *,
    judge: Judge | None = None,
    after_step: AfterStep | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    checkpoint_every: int = 50,
    progress: ProgressHook | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train a copy of ``model`` and return it, in the modes and on the device of ``model``.

    Args:
        model: untouched.
        train: the samples.
        objective: what a step minimises.
        plan: the recipe.
        judge: scores the network at the start, after each epoch and at the end; the best state is
            returned (of equals the later one). Without it the last state is.
        after_step: called after every step of the optimiser, before the state is scored or kept; a function of
            the weights and the rate alone (a checkpoint keeps nothing of it: say in ``settings`` what it does).
        settings: whatever else distinguishes this training; a checkpoint must agree with it.
        device: where to train.
        checkpoint: a file to keep up to date, and to take up where it exists.
        checkpoint_every: steps between two writes; an epoch's end writes too.
        progress: called after every step.
        should_stop: asked before every step; True keeps a checkpoint and raises Interrupted.

    Raises:
        ModelError: nothing to train, or the loss or its gradient is not finite.
        DataError: a damaged checkpoint, or fewer samples than the part said.
        RunFolderError: a checkpoint of a training with other settings.
        Interrupted: ``should_stop`` said so.
    """
    place = usable_device(device)
    if not plan.steps:
        return copy.deepcopy(model)
    about = {**asdict(plan), **(settings or {}), "weights": state_digest(model), "on": place.type}
    student = copy.deepcopy(model)
    run = _Run(student, plan, judge, checkpoint, about, after_step)
    with _repeatable(place), torch.enable_grad():
        student.to(place).train()
        run.start(place)
        _loop(run, train, objective, place, checkpoint_every, progress, should_stop)
        run.choose()
    homes = {t.device for t in (*model.parameters(), *model.buffers())}
    student.to(next(iter(homes), place))
    for ours, theirs in zip(student.modules(), model.modules(), strict=True):
        ours.training = theirs.training
    student.zero_grad(set_to_none=True)
    return student


class _Run:
    """The moving state of one training: network, optimiser, step, and the best so far."""

    def __init__(
        self,
        model: nn.Module,
        plan: Recipe,
        judge: Judge | None,
        path: Path | None,
        about: Mapping[str, Any],
        after_step: AfterStep | None = None,
    ) -> None:
        self.model, self.plan, self.judge, self.path, self.about = model, plan, judge, path, about
        self.after_step = after_step
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_step: int | None = None
        self.best_score = -math.inf

    def start(self, place: torch.device) -> None:
        """Make the optimiser, and take up the checkpoint where there is one."""
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ModelError(
                "the network has no parameter with requires_grad, so there is nothing to train"
            )
        norms = {id(p) for m in self.model.modules() if _is_norm(m) for p in m.parameters()}
        decayed = [p for p in self.trained.values() if p.ndim > 1 and id(p) not in norms]
        plain = [p for p in self.trained.values() if p.ndim <= 1 or id(p) in norms]
        self.optimizer = torch.optim.SGD(
            [
                {"params": decayed, "weight_decay": self.plan.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.plan.lr,
            momentum=self.plan.momentum,
            nesterov=self.plan.momentum > 0,
        )
        saved = None if self.path is None else read_checkpoint(self.path, self.about)
        if saved is None:
            self.score()
            return
        _load_(self.model, saved.model)
        for name, buffer in saved.momentum.items():
            self.optimizer.state[self.trained[name]] = {"momentum_buffer": buffer.to(place)}
        self.step, self.best_step = saved.step, saved.best_step
        if saved.best is not None and saved.best_score is not None:
            self.best = {name: tensor.to(place) for name, tensor in saved.best.items()}
            self.best_score = saved.best_score

    def score(self) -> None:
        """Judge the present state and keep it if none was better."""
        if self.judge is None:
            return
        score = self.judge(self.model)
        self.model.train()
        if score >= self.best_score:
            self.best = {n: t.detach().clone() for n, t in _tensors(self.model).items()}
            self.best_step, self.best_score = self.step, score

    def save(self) -> None:
        """Write the checkpoint, where one is kept."""
        if self.path is None:
            return
        momentum = {
            name: self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.trained.items()
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        snapshot = Snapshot(
            step=self.step,
            model=_tensors(self.model),
            momentum=momentum,
            best=self.best,
            best_step=self.best_step,
            best_score=None if self.best is None else self.best_score,
        )
        write_checkpoint(self.path, snapshot, self.about)

    def choose(self) -> None:
        """Put the best state into the network."""
        if self.best is not None and self.best_step != self.step:
            _load_(self.model, self.best)


def _loop(
    run: _Run,
    train: Part,
    objective: Objective,
    place: torch.device,
    every: int,
    progress: ProgressHook | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    plan, layout = run.plan, None
    while run.step < plan.steps:
        epoch, done = divmod(run.step, plan.steps_per_epoch)
        for index, (x, y) in enumerate(_batches(train, plan, epoch, place)):
            if index < done:
                continue
            if run.step == plan.steps:
                break
            if should_stop is not None and should_stop():
                run.save()
                raise Interrupted(f"training stopped after step {run.step} of {plan.steps}")
            x = x.to(place, non_blocking=True)
            y = None if y is None else y.to(place, non_blocking=True)
            layout = layout or _layout(run.model, objective, x, y)
            if x.ndim == 4:
                x = x.contiguous(memory_format=layout)
            loss = _step(run, objective, x, y)
            run.step += 1
            ended = run.step % plan.steps_per_epoch == 0 or run.step == plan.steps
            if ended:
                run.score()
            if ended or run.step % every == 0:
                run.save()
            if progress is not None:
                progress(run.step, plan.steps, _note(run, loss))


def _layout(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor | None
) -> torch.memory_format:
    """Choose the images' memory format on a copy, so that no statistic and no seed notices."""
    trial = copy.deepcopy(model)

    def run(some: Tensor) -> None:
        objective(first_output(trial(some)), some, None if y is None else y[: len(some)])

    with _repeatable(x.device), torch.no_grad():
        return faster_layout(run, x)


def _step(run: _Run, objective: Objective, x: Tensor, y: Tensor | None) -> float:
    """Take one optimiser step and return its loss."""
    rate = run.plan.learning_rate(run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = objective(first_output(run.model(x)), x, y)
    if loss.ndim:
        raise ConfigError(f"the loss has shape {tuple(loss.shape)}, expected a single number")
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    norm = nn.utils.clip_grad_norm_(run.trained.values(), run.plan.clip)
    value = float(loss.detach())
    if not (math.isfinite(value) and bool(torch.isfinite(norm))):
        if run.path is not None:
            run.path.unlink(missing_ok=True)  # taking it up would lead to the same place
        raise ModelError(
            f"training diverged at step {run.step + 1} of {run.plan.steps}, at learning rate "
            f"{rate:.3g}: the loss is {value}, its gradient's norm {float(norm)}; try a learning "
            f"rate (--lr) of {run.plan.lr / 4:.2g}, and look for NaN in the data and in the loss"
        )
    run.optimizer.step()
    if run.after_step is not None:
        with torch.no_grad():
            run.after_step(run.model, rate)
    return value


def _batches(
    train: Part, plan: Recipe, epoch: int, place: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield an epoch's batches, each after seeding the global generators for that step."""
    stream = train.batches(
        plan.batch, seed=_derive(plan.seed, epoch), augment=plan.augment, drop_last=True
    )
    for index in range(plan.steps_per_epoch):
        seed = _derive(plan.seed, epoch, index)
        torch.default_generator.manual_seed(seed)
        if place.type == "cuda":
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        batch = next(stream, None)
        if batch is None:
            raise DataError(
                f"part '{train.name}' said {len(train)} samples, but gave only {index} batches of "
                f"{plan.batch}; its length and its content disagree"
            )
        yield batch


def _derive(seed: int, *counters: int) -> int:
    """Return a 63-bit seed for one epoch or step."""
    words = np.random.SeedSequence([seed & (2**64 - 1), *counters]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@contextlib.contextmanager
def _repeatable(place: torch.device) -> Iterator[None]:
    """Keep the caller's random state, and have cuDNN choose algorithms that repeat."""
    devices = [place] if place.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        yield


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _load_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(state[name])


def _note(run: _Run, loss: float) -> str:
    best = "" if run.best_step is None else f", best score {100 * run.best_score:.2f} %"
    return f"loss {loss:.3f}{best}"
