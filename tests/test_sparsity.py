"""Sparsity training: scales shrink as the penalty says, and nothing else is different from plain training."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.data import Part, Splits, as_part
from mint_deploy.errors import ConfigError, DataError, Interrupted, ModelError, RunFolderError
from mint_deploy.recover import recover, train_from_scratch
from mint_deploy.schedule import Recipe
from mint_deploy.sparsity import sparsify
from mint_deploy.trace import trace
from mint_deploy.training import fit


def samples(count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows ``[count, 4]`` and the class that their first two entries give them."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def labelled(count: int = 240) -> Part:
    return as_part(samples(count))


def unlabelled(count: int = 240) -> Part:
    return as_part(samples(count)[0])


def net(seed: int = 0, width: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4)
    ).eval()


def scales(model: nn.Module) -> Tensor:
    return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm1d)])


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


SHORT = {"steps": 40, "batch": 40, "lr": 0.05}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return train_from_scratch(net(), labelled(), epochs=10, batch=40, lr=0.05)


def accuracy(model: nn.Module) -> float:
    x, y = samples(500, seed=9)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# ---------------------------------------------------------------- what it does


def test_no_strength_is_plain_training(trained: nn.Module) -> None:
    plain = recover(trained, labelled(), distill=False, **SHORT)
    assert same(sparsify(trained, labelled(), strength=0.0, **SHORT), plain)
    assert not same(sparsify(trained, labelled(), strength=1e-3, **SHORT), plain)


def test_without_labels_it_learns_from_itself(trained: nn.Module) -> None:
    plain = recover(trained, unlabelled(), teacher=trained, **SHORT)
    assert same(sparsify(trained, unlabelled(), strength=0.0, **SHORT), plain)
    assert accuracy(sparsify(trained, unlabelled(), strength=0.01, **SHORT)) > 0.8


def test_scales_shrink_the_more_the_stronger(trained: nn.Module) -> None:
    means = [
        float(scales(sparsify(trained, labelled(), strength=s, **SHORT)).abs().mean())
        for s in (0.0, 0.01, 0.1)
    ]
    assert means[0] > means[1] > means[2]


def test_a_strong_penalty_makes_exact_zeros_of_what_matters_least(trained: nn.Module) -> None:
    made = sparsify(trained, labelled(), strength=0.1, steps=150, batch=40, lr=0.05)
    gone = scales(made) == 0
    assert 4 <= int(gone.sum()) < 16
    assert accuracy(made) > 0.85
    assert int((scales(trained) == 0).sum()) == 0
    scores = md.score(trace(made, torch.randn(2, 4)), criterion="bn_scale").groups["0"]
    assert set(scores.order[: int(gone.sum())].tolist()) == set(gone.nonzero().flatten().tolist())


def test_only_scales_are_penalised(trained: nn.Module) -> None:
    """With a learning rate that moves nothing else, a gigantic penalty changes the scales alone."""
    settings = {"steps": 1, "batch": 240, "lr": 1e-9}
    made = sparsify(trained, labelled(), strength=1e9, **settings)
    assert not scales(made).any()
    for name, tensor in made.named_parameters():
        if name != "1.weight":
            torch.testing.assert_close(tensor, trained.get_parameter(name), atol=1e-6, rtol=0)


class Scale(nn.Module):
    """One BatchNorm: ``gamma`` times the standardised input, and the input itself beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def wants_three(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of the outputs from three times the standardised inputs (here +-1)."""
    return ((outputs[:, 0] - 3.0 * (2.0 * labels - 1.0)) ** 2).mean()


@pytest.mark.parametrize("strength", [0.5, 2.0, 7.0])
def test_it_rests_where_loss_and_penalty_do(strength: float) -> None:
    """``(gamma - 3)^2 + strength |gamma|`` is least at ``3 - strength / 2``, or at zero; momentum or not."""
    labels = torch.arange(8) % 2
    part = as_part((2.0 * labels[:, None] - 1.0, labels))
    made = sparsify(Scale(), part, strength=strength, steps=300, batch=8, lr=0.01, loss=wants_three)
    assert float(made.norm.weight.detach()) == pytest.approx(max(0.0, 3.0 - strength / 2), abs=2e-3)


def test_negative_scales_rise_and_stop_at_zero() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1, 16))
    before = scales(model)
    # one step at rate 1e-9 (warm-up included), so the threshold is strength * rate / (1 - 0.9)
    made = scales(sparsify(model, labelled(), strength=3e7, steps=1, batch=240, lr=1e-9))
    expected = before.sign() * (before.abs() - 0.3).clamp_min(0)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- what it leaves alone


def test_the_users_model_and_random_state_are_untouched(trained: nn.Module) -> None:
    before = copy.deepcopy(trained)
    trained.train()
    state = torch.get_rng_state()
    for part in (labelled(), unlabelled()):
        made = sparsify(trained, part, strength=0.05, **SHORT)
        assert made is not trained
        assert all(m.training for m in trained.modules())
        assert all(m.training for m in made.modules())
    assert torch.equal(torch.get_rng_state(), state)
    trained.eval()
    assert same(trained, before)
    assert all(p.grad is None for p in trained.parameters())


def test_the_last_state_is_returned_whatever_a_validation_part_says(trained: nn.Module) -> None:
    """The state before any penalty would often score best: choosing it would undo the training."""
    splits = Splits(
        name="made", train=labelled(), validation=labelled(60), test=None, classes=4, class_names=None,
        mean=None, std=None, resize=None, input_shape=(4,), digest="d", labelled=True,
    )  # fmt: skip
    one = sparsify(trained, splits, strength=0.05, **SHORT)
    assert same(one, sparsify(trained, labelled(), strength=0.05, **SHORT))


def test_it_repeats_and_follows_the_seed(trained: nn.Module) -> None:
    one, two, other = (
        sparsify(trained, labelled(), strength=0.01, seed=s, **SHORT) for s in (1, 1, 2)
    )
    assert same(one, two)
    assert not same(one, other)


def test_frozen_scales_and_norms_without_scales_are_left(trained: nn.Module) -> None:
    model = nn.Sequential(*net(), nn.BatchNorm1d(4, affine=False))
    model.append(nn.BatchNorm1d(4))
    model[5].weight.requires_grad_(False)
    made = sparsify(model, labelled(), strength=0.1, **SHORT)
    assert torch.equal(made[5].weight, model[5].weight)
    assert float(scales(made[1:2]).mean()) < float(scales(model[1:2]).mean())


# ---------------------------------------------------------------- checkpoints


def test_taken_up_from_a_checkpoint_it_ends_with_the_same_bits(
    trained: nn.Module, tmp_path: Path
) -> None:
    path, settings = tmp_path / "c.safetensors", {**SHORT, "strength": 0.05, "checkpoint_every": 7}
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        sparsify(
            trained, labelled(), checkpoint=path, should_stop=lambda: next(asked) == 18, **settings
        )
    assert path.exists()
    done = sparsify(trained, labelled(), checkpoint=path, **settings)
    assert same(done, sparsify(trained, labelled(), **settings))


def test_a_checkpoint_of_another_strength_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    sparsify(trained, labelled(), strength=0.05, checkpoint=path, **SHORT)
    with pytest.raises(RunFolderError):
        sparsify(trained, labelled(), strength=0.06, checkpoint=path, **SHORT)


# ---------------------------------------------------------------- errors, and the hook itself


@pytest.mark.parametrize("strength", [-1e-4, math.nan, math.inf])
def test_a_strength_that_makes_no_sense(trained: nn.Module, strength: float) -> None:
    with pytest.raises(ConfigError, match=r"strength is .*, expected a number of at least 0"):
        sparsify(trained, labelled(), strength=strength)


def test_a_network_without_scales() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for model in (plain, nn.Sequential(plain, nn.BatchNorm1d(4, affine=False))):
        with pytest.raises(ModelError, match="nothing to make sparse"):
            sparsify(model, labelled())


def test_an_empty_part(trained: nn.Module) -> None:
    with pytest.raises(DataError):
        sparsify(trained, as_part((torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))))


def test_after_step_sees_every_step_with_its_rate_and_without_gradients() -> None:
    seen: list[tuple[float, bool]] = []
    plan = Recipe(steps=6, steps_per_epoch=3, batch=40, lr=0.1, warmup=2)

    def note(model: nn.Module, rate: float) -> None:
        assert isinstance(model, nn.Sequential)
        seen.append((rate, torch.is_grad_enabled()))

    def objective(logits: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        return logits.square().mean()

    fit(net(), labelled(120), objective, plan, after_step=note)
    assert [rate for rate, _ in seen] == [plan.learning_rate(i) for i in range(6)]
    assert not any(enabled for _, enabled in seen)
