"""recalibrate_batchnorm_: the statistics are those of the data, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from rows import Rows
from torch import nn

from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.errors import DataError, ModelError


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2),
    )  # fmt: skip


def images(count=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Rows(3.0 + 2.0 * torch.randn(count, 3, 6, 6, generator=generator), name="train")


def test_one_batch_gives_exactly_its_mean_and_variance():
    model, part = net().eval(), images()
    recalibrate_batchnorm_(model, part, batch=40)
    with torch.no_grad():
        seen = model[0](part.x)
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, seen.transpose(0, 1).flatten(1).var(1))


def test_several_batches_are_averaged_with_equal_weight():
    model, part = net().eval(), images()
    model[1].running_mean.fill_(1e6)  # the old statistics leave no trace
    recalibrate_batchnorm_(model, part, batch=10, seed=7)
    with torch.no_grad():
        first = torch.stack([model[0](x).mean((0, 2, 3)) for x, _ in part.batches(10, seed=7)])
    torch.testing.assert_close(model[1].running_mean, first.mean(0))
    torch.testing.assert_close(first.mean(0), model[0](part.x).mean((0, 2, 3)))
    assert int(model[1].num_batches_tracked) == 4


def test_a_later_layer_sees_what_the_earlier_normalises_with_its_batch():
    model, part = net().eval(), images()
    recalibrate_batchnorm_(model, part, batch=40)
    first = nn.BatchNorm2d(4, track_running_stats=False)
    with torch.no_grad():
        seen = model[4](torch.relu(first(model[0](part.x))))  # dropout is off
    torch.testing.assert_close(model[5].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_only_the_images_asked_for_are_used():
    part = images()
    counted = []
    model = net()
    model[0].register_forward_hook(lambda m, i, o: counted.append(len(i[0])))
    recalibrate_batchnorm_(model, part, images=25, batch=10)
    assert counted == [10, 10]  # whole batches alone
    counted.clear()
    recalibrate_batchnorm_(model, part, images=5, batch=10)
    assert counted == [5]


def test_the_seed_chooses_the_images():
    models = [net().eval() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        recalibrate_batchnorm_(model, images(), images=10, batch=10, seed=seed)
    means = [model[1].running_mean for model in models]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_nothing_else_changes():
    model = net()
    model.train()
    model[1].eval()
    model[1].momentum = 0.3
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    recalibrate_batchnorm_(model, images())
    assert [m.training for m in model] == [True, False, True, True, True, True, True, True]
    assert model.training
    assert (model[1].momentum, model[5].momentum) == (0.3, 0.1)
    assert torch.equal(state, torch.get_rng_state())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {
        f"{i}.{k}" for i in (1, 5) for k in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_other_norms_and_nets_without_batchnorm_are_left_alone():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recalibrate_batchnorm_(model, Rows(torch.zeros(0, 3, 6, 6)))  # nothing is even read
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_batchnorm_without_statistics_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    recalibrate_batchnorm_(model, images())
    assert model[1].running_mean is None


@pytest.mark.parametrize(("count", "batch"), [(1, 10), (10, 1), (0, 10)])
def test_one_sample_has_no_variance(count, batch):
    with pytest.raises(DataError, match="at least 2 samples"):
        recalibrate_batchnorm_(net(), images(count), batch=batch)


def test_nan_names_the_layer_and_puts_the_old_statistics_back():
    model = net()
    with torch.no_grad():
        model[4].weight[2] = math.nan
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    with pytest.raises(ModelError, match=r"running_mean of BatchNorm '5'"):
        recalibrate_batchnorm_(model, images())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert model[5].momentum == 0.1


def test_a_failure_on_the_way_puts_the_old_statistics_back():
    model = net()
    before = model[1].running_mean.clone()
    wrong = Rows(torch.randn(8, 3, 9, 9))  # the linear layer does not fit
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm_(model, wrong)
    assert torch.equal(before, model[1].running_mean)
    assert model.training
