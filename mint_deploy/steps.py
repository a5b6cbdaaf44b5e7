"""What each stage does: a function of the run that reads files of its folder and writes others.

Which files, and which settings a stage depends on, stands in :mod:`mint_deploy.stages`.
Every file is written under another name and renamed, and a stage is recorded as finished after its
last one: a killed run is taken up at the stage it was in, and long training inside its stage.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from mint_deploy import batchnorm, files, plugins
from mint_deploy.artifacts import Accuracy
from mint_deploy.bench_run import measure_run
from mint_deploy.bundle import write_bundle
from mint_deploy.criteria import needs
from mint_deploy.criteria import score as score_units
from mint_deploy.cut_record import cut_body
from mint_deploy.errors import ModelError, RuntimeMissing, TargetError
from mint_deploy.evaluate import promise
from mint_deploy.export import export as export_onnx
from mint_deploy.export import parity_of
from mint_deploy.job import Job
from mint_deploy.lossless import dead_first, summary, widest
from mint_deploy.models import state_digest
from mint_deploy.moments import read_moments, write_moments
from mint_deploy.moments import sample as sample_moments
from mint_deploy.onnx_cost import layer_costs
from mint_deploy.parity import write_parity
from mint_deploy.plan import plan as make_plan
from mint_deploy.plan_file import by_hand, is_costed, read_plan, recosted
from mint_deploy.precision import delivered, lower
from mint_deploy.predict import predict
from mint_deploy.pt2 import save_pt2
from mint_deploy.recover import recover as fine_tune
from mint_deploy.recover import train_from_scratch
from mint_deploy.repair import repair as refit
from mint_deploy.report import render
from mint_deploy.scores_file import read_scores, write_scores
from mint_deploy.settings import DEMO
from mint_deploy.surgery import check_plan
from mint_deploy.survey import survey
from mint_deploy.target import load_target, to_toml
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.verify import prove

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mint_deploy.artifacts import ExportedModel

#: how long the demo trains; its network is small and its images are few
DEMO_EPOCHS = 15.0
#: recovery that is not told how long to last takes one epoch, and at least so many steps
LEAST_STEPS, BATCH = 150, 128
#: sampling stops when its halves agree so far on which units stay
SETTLED = 0.9
#: images for BatchNorm statistics, and for the parity between ONNX and PyTorch
NORM_IMAGES, PARITY_IMAGES = 2000, 16
#: the longest that measuring dense and slim may take; small networks need a part of it
BENCH_S, RESTARTS = 45.0, 5


__all__ = [
    "Job",
    "bench",
    "build",
    "cut",
    "export",
    "plan",
    "prepare",
    "recover",
    "repair",
    "report",
    "sample",
    "score",
]

# ---------------------------------------------------------------- what there is


def prepare(job: Job) -> None:
    """Load the target, the network and the data; train the demo; judge the dense network."""
    target = load_target(job.request.target, power_mode=job.request.power_mode)
    with files.atomic(job.run / "target.toml") as part:
        part.write_text(to_toml(target), encoding="utf-8")
    source, splits = job.source, job.splits
    job.traced(job.network)  # what cannot be cut is refused before anything is trained or written
    if not source.trained:
        if source.name == DEMO:
            _train(job)
        else:
            job.progress.warn(
                f"{source.name} has no --weights, so it is not trained: its accuracy means nothing"
            )
    if not splits.labelled:
        job.progress.warn(
            "the data has no labels: recovery learns from the dense network alone, and accuracy "
            "is the agreement with it"
        )
    job.run.note(
        model_digest=state_digest(job.dense),
        data_digest=splits.digest,
        data=splits.name,
        samples={p.name: len(p) for p in (splits.train, splits.validation, splits.test) if p},
        classes=splits.classes,
        class_names=splits.class_names or source.class_names,
        input_shape=splits.input_shape,
        mean=splits.mean,
        std=splits.std,
        threads=torch.get_num_threads(),
    )
    job.judge("dense", job.dense)


def _train(job: Job) -> None:
    if (job.run / "dense.safetensors").exists():  # a killed run had come so far
        return
    trained = train_from_scratch(
        job.network,
        job.splits,
        epochs=DEMO_EPOCHS,
        seed=job.request.seed,
        device=job.request.device,
        checkpoint=job.checkpoints / "train.safetensors",
        progress=job.progress.step,
    )
    job.keep_dense(trained)
    (job.checkpoints / "train.safetensors").unlink(missing_ok=True)


# ---------------------------------------------------------------- from evidence to a plan


def sample(job: Job) -> None:
    """One pass over unlabelled images: the second moments of what every layer reads."""
    moments = sample_moments(
        job.folded,
        dataclasses.replace(job.graph, tensors=tensors_of(job.folded)),
        job.splits.train,
        images=job.request.images,
        evidence=needs(job.request.criterion, job.request.estimator),
        settle=SETTLED,
        seed=job.request.seed,
        device=job.request.device,
        progress=job.progress.step,
    )
    if moments.settings["stopped"] != "all images seen":
        job.progress.say(f"  {moments.images} images are enough: {moments.settings['stopped']}")
    job.folded.cpu()
    write_moments(job.run / "moments.npz", moments)


def score(job: Job) -> None:
    """Rank the units of every group; a plan that is given needs no ranks."""
    if job.request.plan:
        job.progress.say(f"  nothing is ranked: {job.request.plan} says what stays")
        return
    scores = score_units(
        job.graph,
        read_moments(job.run / "moments.npz"),
        criterion=job.request.criterion,
        estimator=job.request.estimator,
        seed=job.request.seed,
        progress=job.progress.step,
    )
    write_scores(job.run / "scores.npz", scores)


def plan(job: Job) -> None:
    """Choose how wide every group becomes, and which units stay; or replay the plan that is given."""
    if job.request.plan:
        given = read_plan(job.request.plan)
        check_plan(job.dense, given)
        made = dataclasses.replace(by_hand(given, job.graph), model=job.source.spec)
        files.write_value(job.run / "plan.json", made)
        return
    budget: dict[str, Any] = dict([job.request.budget])
    made = make_plan(
        job.graph,
        dead_first(read_scores(job.run / "scores.npz"), job.dead),
        target=job.target,
        ignore=job.request.ignore,
        round_to=job.request.round_to,
        at_most=widest(job.graph, job.dead, job.request.round_to or job.target.round_to),
        model=job.source.spec,
        **budget,
    )
    files.write_value(job.run / "plan.json", made)


# ---------------------------------------------------------------- the cut and after


def cut(job: Job) -> None:
    """Cut, prove the cut, roll back what is not proven; write what was carried out."""
    read = wanted = job.plan
    if not is_costed(wanted):
        job.progress.say("  plan.json was edited: what it costs is computed anew")
        wanted = by_hand(wanted, job.graph)
    slim, made, proof = prove(job.folded, wanted, job.example, seed=job.request.seed)
    for name, group in proof.groups.items():
        if group.status == "rolled back":
            job.progress.warn(f"group {name} was not cut: {group.reason}")
    if not is_costed(made):  # what was rolled back costs what it did
        made = recosted(made, job.graph)
    job.keep(slim, "checkpoints/cut.safetensors", "slim.safetensors", plan=made)
    free = summary(job.graph, job.dead, made)
    files.write_json(job.run / "cut.json", cut_body(job.graph, made, proof, free), kind="Cut")
    seen = survey(job.graph, model=job.source.spec, target=job.target)
    files.write_value(job.run / "overview.json", seen)
    if made is not read:
        files.write_value(job.run / "plan.json", made)
    job.judge("cut", slim)


def repair(job: Job) -> None:
    """Refit the consumers by least squares, then measure BatchNorm's statistics anew."""
    level, slim = job.request.recover, job.slim("cut")
    if level in ("refit", "train"):
        slim = refit(slim, read_moments(job.run / "moments.npz"), job.plan)
    if level != "none":
        batchnorm.recalibrate_batchnorm_(
            slim,
            job.splits.train,
            images=NORM_IMAGES,
            seed=job.request.seed,
            device=job.request.device,
        )
    job.keep(slim, "checkpoints/repair.safetensors", "slim.safetensors")
    if level != "none":
        job.judge("repair", slim)


def recover(job: Job) -> None:
    """Train what is left, and the control: the dense network with the same recovery.

    The test part is looked at here for the first time, for the final figures alone.
    """
    repaired = job.slim("repair")
    slim, control = repaired, None
    last = job.steps()[-1]["step"]
    if job.request.recover == "train":
        slim, control = _trained(job, "recover", repaired), _trained(job, "control", job.dense)
        job.keep(slim, "slim.safetensors")
        last = "recover"
        job.judge("recover", slim)
        job.judge("control", control)
    job.judge_finally("dense", job.dense)
    job.judge_finally(last, slim)
    if control is not None:
        job.judge_finally("control", control)
    _judge_promise(job)
    for name in ("recover", "control"):
        (job.checkpoints / f"{name}.safetensors").unlink(missing_ok=True)


def _trained(job: Job, name: str, model: nn.Module) -> nn.Module:
    """Fine-tune a network; both get the same images, steps, rate, teacher and seed."""
    request, train = job.request, job.splits.train
    epochs = request.epochs
    if epochs is None:
        per_epoch = max(1, len(train) // BATCH)
        epochs = max(1.0, math.ceil(LEAST_STEPS / per_epoch))
    what = "the slim network" if name == "recover" else "the control"
    return fine_tune(
        model,
        job.splits,
        teacher=job.dense,
        epochs=epochs,
        lr=request.lr,
        batch=BATCH,
        distill=request.distill or not job.splits.labelled,
        loss=job.loss,
        metric=job.metric,
        seed=request.seed,
        device=request.device,
        checkpoint=job.checkpoints / f"{name}.safetensors",
        progress=lambda done, total, note: job.progress.step(done, total, f"{what}: {note}"),
    )


# ---------------------------------------------------------------- delivery


def export(job: Job) -> None:
    """Write both networks as ONNX, compared with PyTorch, and pack what travels to a board."""
    made, splits = job.plan, job.splits
    names = splits.class_names or job.source.class_names
    samples = next(iter(splits.validation.batches(PARITY_IMAGES)))[0]
    networks = {"dense": job.dense, "slim": job.slim_from(job.run / "slim.safetensors")}
    exported: dict[str, ExportedModel] = {}
    for label, model in networks.items():
        job.progress.step(len(exported), 2, f"the {label} network")
        exported[label] = export_onnx(
            model,
            job.run / ("dense.onnx" if label == "dense" else "model.onnx"),
            job.example,
            job.target,
            plan_digest=made.digest() if label == "slim" else "",
            class_names=names,
            mean=splits.mean,
            std=splits.std,
            parity_inputs=samples,
        )
    if job.request.pt2:
        _save_pt2(job, networks["slim"], samples)
    write_parity(job.run / "parity.npz", parity_of(networks, samples, class_names=names))
    lower(job, exported)
    body = {
        **exported,
        "target": job.target,
        "plan_digest": made.digest(),
        "class_names": names,
        "mean": splits.mean,
        "std": splits.std,
    }
    files.write_json(job.run / "deploy.json", body, kind="Deploy")
    _predict(job)
    write_bundle(job.run.path, job.target)


def _save_pt2(job: Job, slim: nn.Module, samples: Tensor) -> None:
    """Write model.pt2, for any batch where the network allows it."""
    path, about = job.run / "model.pt2", {"model": job.source.spec, "plan": job.plan.digest()}
    try:
        save_pt2(slim, path, samples, dynamic_batch=True, about=about)
    except ModelError as error:
        job.progress.warn(f"model.pt2 is for batches of {job.target.batch} alone: {error}")
        save_pt2(slim, path, samples[: job.target.batch], about=about)


def _predict(job: Job) -> None:
    """Predict times for a board that is not here, where its profile has the figures."""
    if job.target.family not in ("jetson", "gpu"):
        return
    costs = [layer_costs(job.run / name) for name in ("dense.onnx", "model.onnx")]
    try:
        body = predict(job.target, *costs)
    except TargetError as error:
        job.progress.warn(str(error))
        return
    files.write_json(job.run / "predicted.json", body, kind="Prediction")


def build(job: Job) -> None:
    """Make an engine of the slim network with the target's runtime, where it is here, and record it."""
    runtime, model = job.target.runtime, delivered(job.run.path, job.target)["slim"]
    try:
        plugins.load("runtime", runtime).build(model, job.target, job.run.path)
    except RuntimeMissing as error:
        if runtime == "onnxruntime":
            raise
        job.progress.say(
            f"  no {runtime} here ({error.why}): its engine is built on the device, from the bundle; what "
            "is built and measured here is ONNX Runtime's"
        )
        plugins.load("runtime", "onnxruntime").build(job.run / "model.onnx", None, job.run.path)


def bench(job: Job) -> None:
    """Measure dense and slim in turns on this machine, and what else there is to know of them."""
    measure_run(job, budget_s=BENCH_S, restarts=RESTARTS)


def report(job: Job) -> None:
    """Judge the promise, and write the report."""
    _judge_promise(job)
    render(job.run.path)


def _judge_promise(job: Job) -> None:
    limit = job.request.max_accuracy_drop
    if limit is None:
        limit = job.target.promises.get("max_accuracy_drop")
    steps = job.steps()
    job.write_steps(steps, None if limit is None else _judged(steps, limit))


def _judged(steps: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """The promise as accuracy.json holds it; ``kept`` is None where the interval straddles it."""
    rows = [s for s in steps if s["step"] not in ("dense", "control")]
    found = files.decode(Accuracy, rows[-1]["test"] or rows[-1]["validation"])
    kept, text = promise(found, limit)
    low, high = found.drop_low, found.drop_high
    if found.measure == "agreement":
        low, high = 100 * (1 - found.high), 100 * (1 - found.low)
    if low is not None and high is not None and low <= limit < high:
        return {"max_accuracy_drop": limit, "kept": None, "text": f"undecided: {text}"}
    return {"max_accuracy_drop": limit, "kept": kept, "text": text}
