"""The training loop: what it optimises, what it chooses, and that it can be taken up anywhere."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rows import Rows
from torch import nn

from mint_deploy.checkpoint import Snapshot, read_checkpoint, write_checkpoint
from mint_deploy.errors import ConfigError, DataError, Interrupted, ModelError, RunFolderError
from mint_deploy.schedule import recipe
from mint_deploy.training import fit, label_loss

HERE = Path(__file__).resolve().parent


def part(count=50, seed=0):
    """Noise in three channels; the class is the channel that is a little brighter."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 3, 6, 6, generator=generator) + F.one_hot(y, 3)[:, :, None, None]
    return Rows(x, y, "train")


def net(seed=0):
    """BatchNorm, dropout, a tied weight and one that its owner froze."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3),
    )  # fmt: skip
    model[7].weight = model[6].weight
    model[7].bias.requires_grad_(False)
    return model


def plan_of(train, **changes):
    settings = {"epochs": 1, "steps": None, "batch": 10, "lr": 0.05, "weight_decay": 5e-4}
    return recipe(train, **{**settings, "augment": True, "seed": 0, **changes})


def objective(logits, x, y):
    return label_loss(logits, y)


def train(model=None, train_on=None, **settings):
    names = ("epochs", "steps", "batch", "lr", "weight_decay", "augment", "seed")
    train_on = train_on or part()
    plan = plan_of(train_on, **{k: settings.pop(k) for k in names if k in settings})
    return fit(model or net(), train_on, settings.pop("objective", objective), plan, **settings)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def right(model, rows):
    model.eval()
    with torch.no_grad():
        return float((model(rows.x).argmax(1) == rows.y).float().mean())


# ---------------------------------------------------------------- the schedule


def test_the_rate_rises_then_falls_to_nearly_nothing():
    plan = plan_of(part(), steps=100, lr=0.4)
    rates = [plan.learning_rate(step) for step in range(100)]
    assert plan.warmup == 5
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert max(rates) == 0.4
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[52] == pytest.approx(0.2, abs=0.01)  # half way down the cosine
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(
    ("changes", "steps", "batch", "per_epoch"),
    [
        ({"epochs": 2}, 10, 10, 5),
        ({"epochs": 0.5}, 2, 10, 5),
        ({"epochs": 0.01}, 1, 10, 5),
        ({"epochs": 0}, 0, 10, 5),
        ({"steps": 7}, 7, 10, 5),
        ({"batch": 64}, 1, 50, 1),  # the part is smaller than a batch
        ({"batch": 15}, 3, 15, 3),  # whole batches alone
    ],
)
def test_a_recipe_fits_the_part(changes, steps, batch, per_epoch):
    plan = plan_of(part(50), **changes)
    assert (plan.steps, plan.batch, plan.steps_per_epoch) == (steps, batch, per_epoch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": math.nan}, "epochs is nan"),
        ({"steps": -2}, "steps is -2"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": 0.0}, "learning rate is 0.0"),
        ({"lr": math.inf}, "learning rate is inf"),
        ({"weight_decay": -1.0}, "weight decay is -1.0"),
    ],
)
def test_a_recipe_that_makes_no_sense(changes, said):
    with pytest.raises(ConfigError, match=said):
        plan_of(part(), **changes)
    with pytest.raises(DataError, match="empty"):
        plan_of(part(0))


# ---------------------------------------------------------------- what a step does


def test_one_step_by_hand():
    """One step without warm-up: Nesterov momentum from zero moves by (1 + momentum) lr gradient."""
    model, rows = nn.Linear(4, 3), Rows(torch.randn(10, 4), torch.arange(10) % 3)
    trained = train(model, rows, steps=1, lr=0.1, weight_decay=0.01, augment=False)
    F.cross_entropy(model(rows.x), rows.y).backward()
    decayed = model.weight.grad + 0.01 * model.weight
    torch.testing.assert_close(trained.weight, model.weight - 0.1 * 1.9 * decayed)
    torch.testing.assert_close(trained.bias, model.bias - 0.1 * 1.9 * model.bias.grad)  # no decay


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((2, 3)), nn.Linear(3, 2))

    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts[2](self.parts[1](self.parts[0](x).view(-1, 2, 3))).mean(1)

    rows = Rows(torch.randn(10, 4), torch.zeros(10).long())
    trained = train(
        Shaped(), rows, steps=1, lr=0.1, weight_decay=0.5,
        objective=lambda logits, x, y: 0.0 * logits.sum(),
    )  # fmt: skip
    after = trained.parts.state_dict()
    kept = {k for k, v in model.state_dict().items() if torch.equal(v, after[k])}
    assert kept == {"0.bias", "1.weight", "1.bias", "2.bias"}


def test_large_gradients_are_clipped():
    model, rows = nn.Linear(4, 3), Rows(torch.randn(10, 4), torch.zeros(10).long())
    trained = train(
        model, rows, steps=1, lr=0.1, weight_decay=0.0,
        objective=lambda logits, x, y: 1e6 * label_loss(logits, y),
    )  # fmt: skip
    moved = [(trained.weight - model.weight).flatten(), trained.bias - model.bias]
    assert float(torch.cat(moved).detach().norm()) == pytest.approx(0.1 * 1.9 * 5.0, rel=1e-4)


def test_it_learns():
    rows, held_out = part(400), part(200, seed=1)
    assert right(net(), held_out) < 0.6
    trained = train(net(), rows, epochs=20, batch=40, augment=False)
    assert right(trained, held_out) > 0.85


def test_one_logit_learns_yes_or_no():
    logits = torch.tensor([[0.3], [-1.2]])
    expected = -torch.log(torch.sigmoid(torch.tensor([0.3, 1.2]))).mean()
    torch.testing.assert_close(label_loss(logits, torch.tensor([1, 0])), expected)
    torch.testing.assert_close(label_loss(logits[:, 0], torch.tensor([1, 0])), expected)


# ---------------------------------------------------------------- nothing is left behind


def test_the_model_given_is_untouched_and_its_modes_return():
    model = net()
    model.eval()
    model[3].train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = train(model, epochs=1)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for m in (model, trained) for p in m.parameters())
    assert not same(model, trained)
    assert [m.training for m in trained.modules()] == [m.training for m in model.modules()]
    assert trained[7].weight is trained[6].weight  # still tied
    assert torch.equal(trained[7].bias, model[7].bias)  # frozen by its owner
    assert all(t.is_contiguous() for t in trained.state_dict().values())


def test_no_steps_give_a_copy():
    model = net()
    trained = train(model, epochs=0)
    assert trained is not model
    assert same(model, trained)


def test_the_seed_decides_and_the_callers_generator_does_not():
    torch.manual_seed(1)
    first = train(seed=5)
    before = torch.get_rng_state()
    second = train(seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    third = train(model=first.__class__(*net()), seed=6)
    assert same(first, second)
    assert not same(first, third)


def test_data_that_draws_from_the_global_generator_is_seeded_too():
    class Careless(Rows):
        def batches(self, size, **how):
            for x, y in super().batches(size, **how):
                yield x + torch.randn(x.shape), y

    rows = part()
    runs = [train(train_on=Careless(rows.x, rows.y)) for _ in range(2)]
    assert same(*runs)


def test_every_epoch_has_another_order():
    seen = []

    class Watched(Rows):
        def batches(self, size, *, seed=None, **how):
            seen.append(seed)
            return super().batches(size, seed=seed, **how)

    rows = part()
    train(train_on=Watched(rows.x, rows.y), epochs=3)
    epochs = list(dict.fromkeys(seen))
    assert len(epochs) == 3
    assert None not in epochs


# ---------------------------------------------------------------- which state is kept


def scores(values):
    """A judge that gives these scores one after the other and remembers the weights it saw."""
    left, seen = list(values), []

    def judge(model):
        seen.append(model[0].weight.detach().clone())
        return left.pop(0)

    return judge, seen


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.9, 0.5, 0.6, 0.7], 0),  # nothing was better than the start
        ([0.1, 0.5, 0.8, 0.7], 2),
        ([0.1, 0.5, 0.6, 0.7], 3),
        ([0.5, 0.5, 0.5, 0.5], 3),  # of equals the later
    ],
)
def test_the_best_state_is_returned(values, best):
    judge, seen = scores(values)
    trained = train(epochs=3, judge=judge)
    assert len(seen) == 4  # the start and three epochs
    assert torch.equal(trained[0].weight, seen[best])


def test_part_of_an_epoch_is_judged_at_its_end():
    judge, seen = scores([0.1, 0.2])
    train(steps=3, judge=judge)
    assert len(seen) == 2


def test_a_judge_may_leave_eval_mode_behind():
    def judge(model):
        model.eval()
        return 0.0

    assert same(train(epochs=2, judge=judge), train(epochs=2, judge=lambda model: 0.0))


def test_without_a_judge_the_last_state_is_returned():
    judge, _ = scores([0, 1])
    assert torch.equal(train(judge=judge)[0].weight, train()[0].weight)


# ---------------------------------------------------------------- checkpoints


class PowerError(Exception):
    """The plug was pulled."""


def pulled_at(step):
    def progress(done, total, note):
        if done == step:
            raise PowerError

    return progress


def rising():
    """A judge that is a function of the weights alone, and not monotone."""
    return lambda model: float(torch.sin(50 * model[0].weight.detach().sum()))


@pytest.mark.parametrize("at", [1, 5, 7, 12, 14, 15])
def test_taken_up_it_ends_with_the_same_bits(tmp_path, at):
    path = tmp_path / "checkpoints" / "recover.safetensors"
    undisturbed = train(epochs=3, judge=rising())
    with pytest.raises(PowerError):
        train(epochs=3, judge=rising(), checkpoint=path, checkpoint_every=3, progress=pulled_at(at))
    assert path.exists() == (at >= 3)
    steps = []
    resumed = train(
        epochs=3, judge=rising(), checkpoint=path, checkpoint_every=3,
        progress=lambda done, total, note: steps.append(done),
    )  # fmt: skip
    assert same(undisturbed, resumed)
    assert steps == list(range(1 + (0 if at < 3 else max(at - at % 3, at - at % 5)), 16))


def test_a_finished_training_is_read_from_its_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    judge, _ = scores([0.1, 0.9, 0.2])
    first = train(epochs=2, checkpoint=path, judge=judge)

    def never(*_):
        raise AssertionError("a finished training was trained on")

    again = train(epochs=2, checkpoint=path, progress=never, judge=never)
    assert same(first, again)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_stopped_when_asked_and_taken_up(tmp_path):
    path = tmp_path / "c.safetensors"
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(Interrupted, match="after step 4 of 15"):
        train(epochs=3, checkpoint=path, checkpoint_every=1000, should_stop=should_stop)
    assert same(train(epochs=3), train(epochs=3, checkpoint=path))


KILLED = """
import sys, time
sys.path[:0] = [{here!r}, {root!r}]
import torch
torch.set_num_threads(1)
from test_training import rising, train
from pathlib import Path
def progress(done, total, note):
    print(done, flush=True)
    time.sleep(0.02)
path = Path(sys.argv[1])
train(epochs=40, judge=rising(), checkpoint=path, checkpoint_every=1, progress=progress)
"""


def test_killed_in_the_middle_and_taken_up(tmp_path):
    path, threads = tmp_path / "c.safetensors", torch.get_num_threads()
    code = KILLED.format(here=str(HERE), root=str(HERE.parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 23:
                time.sleep(0.013)
                os.kill(process.pid, signal.SIGKILL)
                break
    torch.set_num_threads(1)
    try:
        steps = []
        resumed = train(
            epochs=40, judge=rising(), checkpoint=path, checkpoint_every=1,
            progress=lambda done, total, note: steps.append(done),
        )  # fmt: skip
        assert 23 <= steps[0] <= 30  # it went on, it did not begin anew
        assert same(train(epochs=40, judge=rising()), resumed)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.01}, r"lr \(there 0.05, now 0.01\)"),
        ({"seed": 1}, r"seed \(there 0, now 1\)"),
        ({"steps": 9}, "steps"),
        ({"settings": {"data": "other"}}, r"data \(there None, now other\)"),
        ({"model": net(seed=3)}, "weights"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(108, 3))}, "weights"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, changes, said):
    path = tmp_path / "c.safetensors"
    train(checkpoint=path)
    kept = path.read_bytes()
    with pytest.raises(RunFolderError, match=said):
        train(checkpoint=path, **changes)
    assert path.read_bytes() == kept


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "c.safetensors"
    train(checkpoint=path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-40] ^= 0x10
    for damaged in (b"", whole[:100], whole[:-10], b"PK" + whole, bytes(changed)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"c\.safetensors is damaged.*remove"):
            train(checkpoint=path)


def test_a_checkpoint_keeps_every_tensor_as_it_is(tmp_path):
    path = tmp_path / "c.safetensors"
    state = {
        "half": torch.randn(3).to(torch.bfloat16),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
        "layout": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
    }
    written = Snapshot(step=3, model=state, momentum={"half": state["nan"]})
    write_checkpoint(path, written, {"lr": 0.1})
    found = read_checkpoint(path, {"lr": 0.1})
    assert found is not None
    assert (found.step, found.best, found.best_score) == (3, None, None)
    assert found.model.keys() == state.keys()
    for name, tensor in state.items():
        assert found.model[name].dtype == tensor.dtype
        assert torch.equal(found.model[name].nan_to_num(7.0), tensor.nan_to_num(7.0))
    assert read_checkpoint(tmp_path / "none", {}) is None


def test_the_file_of_another_safetensors_writer_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="no checkpoint"):
        train(checkpoint=path)


# ---------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    path = tmp_path / "c.safetensors"
    steps = []

    def worse(logits, x, y):
        steps.append(1)
        return label_loss(logits, y) * (math.nan if len(steps) == 9 else 1.0)

    with pytest.raises(ModelError, match=r"diverged at step 8 of 15.*--lr\) of 0\.013"):
        train(epochs=3, objective=worse, checkpoint=path, checkpoint_every=1)
    assert not path.exists()  # taking it up would end there again


def test_a_gradient_that_is_not_finite_stops_too():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, 3))

        def forward(self, x):
            return x[:, :3] * 0 + self.w.abs().sqrt()  # finite, but of infinite slope at zero

    rows = Rows(torch.randn(10, 3), torch.zeros(10).long())
    with pytest.raises(ModelError, match="gradient's norm nan"):
        train(Root(), rows)


def test_a_network_without_anything_to_train():
    model = net()
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing to train"):
        train(model)


def test_a_loss_that_is_no_number():
    with pytest.raises(ConfigError, match=r"the loss has shape \(10, 3\)"):
        train(objective=lambda logits, x, y: logits)


def test_a_part_that_gives_less_than_it_said():
    class Short(Rows):
        def batches(self, size, **how):
            yield from [*super().batches(size, **how)][:3]

    rows = part()
    with pytest.raises(DataError, match="said 50 samples, but gave only 3 batches of 10"):
        train(train_on=Short(rows.x, rows.y))


def test_a_network_that_views_its_activations_trains():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.out = nn.Linear(64, 3)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.out(x.view(x.size(0), -1))

    trained = train(Views(), epochs=2)
    assert int(trained.norm.num_batches_tracked) == 10  # the trial of the layout left no trace


@pytest.mark.gpu
def test_on_cuda_it_is_repeatable_and_comes_home():
    runs = [train(device="cuda", epochs=2) for _ in range(2)]
    assert same(*runs)
    assert runs[0][0].weight.device.type == "cpu"
