"""recover and train_from_scratch: what the student learns from, on which data, chosen by what."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mint_deploy.data import Part, Splits, as_part, load_data
from mint_deploy.errors import ConfigError, DataError, ModelError, RunFolderError
from mint_deploy.evaluate import evaluate
from mint_deploy.models import load_model
from mint_deploy.recover import distillation_loss, recover, train_from_scratch


def samples(count=60, seed=0):
    """Rows ``[count, 4]`` and the class (0 to 2) that a fixed linear map gives them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    fixed = torch.randn(4, 3, generator=torch.Generator().manual_seed(42))
    return x, (x @ fixed).argmax(1)


def labelled(count=60, seed=0) -> Part:
    return as_part(samples(count, seed))


def unlabelled(count=60, seed=0) -> Part:
    return as_part(samples(count, seed)[0])


def net(seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, outputs)
    ).eval()


@pytest.fixture(scope="module")
def teacher():
    return train_from_scratch(net(), labelled(600), epochs=10, batch=20, lr=0.1).eval()


@pytest.fixture
def damaged(teacher):
    """The teacher with most of its hidden units dead: what a rough cut leaves."""
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[4].weight[:, 3:] = 0
    return student


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def gap(student, teacher):
    """Mean squared difference of the logits on new samples."""
    x = samples(300, seed=9)[0]
    with torch.no_grad():
        return float(F.mse_loss(student(x), teacher(x)))


def top1(model, seed=5):
    return evaluate(model, labelled(500, seed)).accuracy.top1


# ---------------------------------------------------------------- the distillation loss


def test_distillation_by_hand():
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    p = torch.tensor([1.0, math.e**2]) / (1 + math.e**2)  # teacher / 2
    q = torch.tensor([math.e, 1.0]) / (1 + math.e)  # student / 2
    expected = 4 * float((p * (p / q).log()).sum())
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    both = distillation_loss(student.repeat(5, 1), teacher.repeat(5, 1), 2.0)
    assert float(both) == pytest.approx(expected, rel=1e-5)  # the mean over the batch
    assert float(distillation_loss(teacher, teacher + 3.0, 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2, 2)])
def test_other_outputs_are_matched_by_their_squared_difference(shape):
    a, b = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(distillation_loss(a, b, 4.0), ((a - b) ** 2).mean())


def test_a_teacher_of_another_shape(damaged):
    with pytest.raises(ModelError, match=r"teacher's output is \(60, 7\), the network's \(60, 3\)"):
        recover(damaged, labelled(), teacher=net(outputs=7), steps=1)


# ---------------------------------------------------------------- recovery


def test_it_recovers_what_was_lost(damaged, teacher):
    before = {k: v.clone() for k, v in damaged.state_dict().items()}
    slim = recover(damaged, labelled(600), teacher=teacher, epochs=5, batch=20)
    assert top1(damaged) < 0.8
    assert top1(slim) > 0.9
    assert slim is not damaged
    assert all(torch.equal(v, damaged.state_dict()[k]) for k, v in before.items())


def test_labels_are_not_needed(damaged, teacher):
    slim = recover(damaged, unlabelled(600), teacher=teacher, epochs=5, batch=20)
    assert top1(slim) > 0.9
    assert gap(slim, teacher) < 0.2 * gap(damaged, teacher)


def test_distillation_brings_the_student_nearer_to_the_teacher(damaged, teacher):
    settings = {"epochs": 5, "batch": 20, "lr": 0.02}
    alone = recover(damaged, labelled(600), teacher=teacher, distill=False, **settings)
    guided = recover(damaged, labelled(600), teacher=teacher, weight=0.9, **settings)
    assert gap(guided, teacher) < 0.75 * gap(alone, teacher)
    assert same(alone, recover(damaged, labelled(600), **settings))  # no teacher, no distillation


def test_the_weight_mixes_labels_and_teacher(damaged, teacher):
    """All weight on the teacher is what unlabelled data gives; none is what no teacher gives."""
    settings = {"steps": 4, "batch": 20}
    train = labelled()
    only = recover(damaged, train, teacher=teacher, weight=1.0, **settings)
    assert same(only, recover(damaged, unlabelled(), teacher=teacher, **settings))
    none = recover(damaged, train, teacher=teacher, weight=0.0, **settings)
    assert same(none, recover(damaged, train, **settings))
    assert not same(only, none)


def test_one_step_moves_by_the_weighted_sum(damaged, teacher):
    rows = labelled(20)
    moved = {}
    for weight in (0.0, 0.3, 1.0):
        student = recover(damaged, rows, teacher=teacher, weight=weight, steps=1, lr=1e-3)
        moved[weight] = student[4].weight - damaged[4].weight
    torch.testing.assert_close(
        moved[0.3], 0.7 * moved[0.0] + 0.3 * moved[1.0], rtol=1e-3, atol=1e-7
    )
    assert not torch.allclose(moved[0.0], moved[1.0], rtol=0.05)


def test_the_teacher_is_left_as_it_was(damaged, teacher):
    guide = copy.deepcopy(teacher).train()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    recover(damaged, labelled(), teacher=guide, steps=3)
    assert all(torch.equal(v, guide.state_dict()[k]) for k, v in before.items())
    assert guide.training
    assert all(p.grad is None for p in guide.parameters())


def test_a_network_may_be_its_own_teacher(teacher):
    """The control: the dense network with the same recovery."""
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    control = recover(teacher, labelled(), teacher=teacher, epochs=2)
    assert control is not teacher
    assert not same(control, teacher)
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())


def test_outputs_with_positions_recover_without_labels():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    slim = copy.deepcopy(dense)
    with torch.no_grad():
        slim[2].weight[:, :4] = 0
    images = as_part(torch.randn(40, 3, 8, 8))
    better = recover(slim, images, teacher=dense, epochs=20, batch=10, lr=0.05, validation=images)
    x = torch.randn(10, 3, 8, 8)
    with torch.no_grad():
        assert F.mse_loss(better(x), dense(x)) < 0.7 * F.mse_loss(slim(x), dense(x))


# ---------------------------------------------------------------- validation chooses


def splits(train, validation):
    return Splits(
        name="made", train=train, validation=validation, test=None, classes=3, class_names=None,
        mean=None, std=None, resize=None, input_shape=(4,), digest="d", labelled=True,
    )  # fmt: skip


def test_a_training_that_harms_returns_the_start(teacher):
    x, y = samples(200)
    wrong = as_part((x, (y + 1) % 3))
    harmed = recover(teacher, wrong, epochs=3, batch=20, lr=0.1)
    assert top1(harmed) < 0.5
    kept = recover(teacher, splits(wrong, labelled(200, 1)), epochs=3, batch=20, lr=0.1)
    assert same(kept, teacher)


def test_a_validation_part_given_overrules_the_splits(teacher):
    x, y = samples(200)
    shifted = as_part((x, (y + 1) % 3))
    data = splits(shifted, labelled(200, 1))
    chosen = recover(teacher, data, validation=shifted, epochs=3, batch=20, lr=0.1)
    assert top1(chosen) < 0.5


def test_without_labels_the_agreement_with_the_teacher_chooses(teacher):
    """From the teacher itself nothing can agree better, so a rough training is not taken."""
    rough = recover(
        teacher, unlabelled(200), teacher=teacher, validation=unlabelled(500, 2), steps=3,
        lr=30.0, batch=20,
    )  # fmt: skip
    assert same(rough, teacher)


def test_the_users_loss_and_metric_are_used(teacher):
    calls = {"loss": 0, "metric": 0}

    def shifted(logits, y):
        calls["loss"] += 1
        return F.cross_entropy(logits, (y + 1) % 3)

    def shifted_right(logits, y):
        calls["metric"] += 1
        return logits.argmax(1) == (y + 1) % 3

    data = splits(labelled(200), labelled(100, 1))
    learned = recover(teacher, data, loss=shifted, metric=shifted_right, epochs=5, batch=20, lr=0.1)
    assert calls["loss"] >= 50
    assert calls["metric"] >= 6
    assert top1(learned) < 0.3  # it learned the shifted classes


# ---------------------------------------------------------------- settings


def test_the_default_rate_grows_with_the_batch(damaged):
    x, y = samples(256)
    part = as_part((x, y))
    for batch, rate in ((128, 0.02), (64, 0.01), (256, 0.04), (1000, 0.04)):
        default = recover(damaged, part, steps=2, batch=batch)
        assert same(default, recover(damaged, part, steps=2, batch=batch, lr=rate)), batch


def test_the_seed_decides(damaged, teacher):
    a, b, c = (
        recover(damaged, labelled(), teacher=teacher, steps=3, batch=20, seed=s) for s in (0, 0, 1)
    )
    assert same(a, b)
    assert not same(a, c)


def test_no_epochs_give_a_copy(damaged, teacher):
    assert same(recover(damaged, labelled(), teacher=teacher, epochs=0), damaged)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": 1.5}, "weight is 1.5"),
        ({"weight": math.nan}, "weight is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"lr": -1.0}, "learning rate is -1.0"),
        ({"epochs": -1.0}, "epochs is -1"),
    ],
)
def test_settings_that_make_no_sense(damaged, teacher, settings, said):
    with pytest.raises(ConfigError, match=said):
        recover(damaged, labelled(), teacher=teacher, **settings)


@pytest.mark.parametrize("settings", [{}, {"distill": False}])
def test_neither_labels_nor_a_teacher(damaged, teacher, settings):
    guide = teacher if settings else None
    with pytest.raises(DataError, match="no labels, and there is no teacher"):
        recover(damaged, unlabelled(), teacher=guide, **settings)
    with pytest.raises(DataError, match="no labels"):
        train_from_scratch(net(), unlabelled())


def test_a_teacher_that_gives_nan(damaged, teacher):
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        broken[4].bias[0] = math.nan
    with pytest.raises(ModelError, match="diverged at step 1 of"):
        recover(damaged, labelled(), teacher=broken, steps=2)


# ---------------------------------------------------------------- checkpoints


class PowerError(Exception):
    """The plug was pulled."""


def test_taken_up_it_ends_with_the_same_bits(damaged, teacher, tmp_path):
    path = tmp_path / "recover.safetensors"
    data = splits(labelled(200), labelled(100, 1))
    settings = {"teacher": teacher, "epochs": 3, "batch": 20, "checkpoint_every": 4}
    undisturbed = recover(damaged, data, **settings)

    def pull(done, total, note):
        assert total == 30
        assert "loss" in note
        if done == 13:
            raise PowerError

    with pytest.raises(PowerError):
        recover(damaged, data, checkpoint=path, progress=pull, **settings)
    steps = []
    resumed = recover(
        damaged, data, checkpoint=path, progress=lambda done, *_: steps.append(done), **settings
    )
    assert steps[0] == 13  # from the checkpoint after step 12
    assert same(undisturbed, resumed)
    for other in ({"weight": 0.4}, {"temperature": 2.0}, {"distill": False}, {"seed": 3}):
        with pytest.raises(RunFolderError, match="other settings"):
            recover(damaged, data, checkpoint=path, **{**settings, **other})
    with pytest.raises(RunFolderError, match="data"):
        recover(damaged, labelled(180), checkpoint=path, **settings)


# ---------------------------------------------------------------- the demo and the real network


def test_the_demo_network_learns_the_digits():
    data = load_data("digits")
    dense = load_model("resnet8-digits").model
    trained = train_from_scratch(dense, data, epochs=8)
    assert evaluate(trained, data.validation).accuracy.top1 >= 0.95


def test_both_trainings_take_the_same_arguments():
    of_recover = inspect.signature(recover).parameters
    of_scratch = inspect.signature(train_from_scratch).parameters
    assert set(of_recover) - set(of_scratch) == {"teacher", "distill", "weight", "temperature"}
    assert set(of_scratch) <= set(of_recover)


def test_a_real_network_on_real_images(shared_data):
    """Four steps of the trained ResNet-20 on real images do it no harm."""
    data = load_data(
        f"cifar10:{shared_data / 'cifar10'}", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    dense = load_model("resnet20-cifar10", str(shared_data / "weights/resnet20-12fca82f.th")).model
    rows = data.train.balanced(128, 0)
    before = evaluate(dense, rows)
    after = evaluate(recover(dense, rows, teacher=dense, steps=4, batch=32), rows, reference=before)
    assert before.accuracy.top1 > 0.75
    assert after.accuracy.top1 > 0.75
