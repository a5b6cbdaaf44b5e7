"""evaluate: what is counted, against whom, with which interval, and the promise about it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rows import Fixed, Rows, logits_of
from torch import nn

from mint_deploy.errors import ConfigError, DataError, ModelError
from mint_deploy.evaluate import evaluate, promise
from mint_deploy.inference import evaluating, usable_device
from mint_deploy.intervals import mean_interval, paired_interval, wilson

Z = 1.959963984540054


def outcome_of(answers, labels, reference=None, name="test", **more):
    """Evaluate a network that answers ``answers`` on samples labelled ``labels``."""
    y = None if labels is None else torch.tensor(labels)
    part = Rows(logits_of(answers), y, name)
    return evaluate(Fixed(), part, reference=reference, batch=3, **more)


# ---------------------------------------------------------------- intervals


def test_wilson_agrees_with_a_published_example():
    # Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3: 81 of 263 and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_stays_between_zero_and_one():
    assert wilson(0, 1)[0] == 0.0
    assert wilson(1, 1)[1] == 1.0
    with pytest.raises(DataError, match="5 right of 4"):
        wilson(5, 4)


def test_paired_interval_by_hand():
    # nothing lost, nothing gained: |N d| = z sqrt(N |d| (1 - |d|)), so |d| = z^2 / (N + z^2)
    bound = Z**2 / (44 + Z**2)
    assert paired_interval(0, 0, 44) == pytest.approx((-bound, bound), abs=1e-9)
    # nothing gained: the upper bound is that of a single proportion, Wilson's
    assert paired_interval(5, 0, 100)[1] == pytest.approx(wilson(5, 100)[1], abs=1e-9)
    # Tango 1998, contact lenses, 43 0 1 0: 90 % interval -0.096 to 0.037
    assert paired_interval(0, 1, 44, z=1.6448536) == pytest.approx((-0.096, 0.037), abs=5e-4)


def test_paired_interval_solves_the_score_equation():
    """At either end Tango's statistic, with the constrained estimate found by search, is z."""
    lost, gained, n = 30, 12, 200
    low, high = paired_interval(lost, gained, n)
    for delta in (low, high):
        # maximum likelihood of p(second only) = q with p(first only) = q + delta
        q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = (
                lost * np.log(q + delta)
                + gained * np.log(q)
                + (n - lost - gained) * np.log(1 - 2 * q - delta)
            )
        best = q[np.argmax(likelihood)]
        statistic = (lost - gained - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))
        assert abs(statistic) == pytest.approx(Z, abs=1e-3)
    assert low < (lost - gained) / n < high


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 3, 3), (3, 0, 3), (1, 0, 1), (0, 0, 1)])
def test_paired_interval_at_its_limits(lost, gained, n):
    low, high = paired_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    mirrored = paired_interval(gained, lost, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_paired_interval_refuses_impossible_counts():
    with pytest.raises(DataError, match="3 lost and 2 gained do not fit 4"):
        paired_interval(3, 2, 4)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.05, 0.05), (0.10, 0.05), (0.03, 0.01)])
def test_paired_interval_covers_the_truth_95_times_in_100(p_lost, p_gained):
    rng = np.random.default_rng(0)
    n, rounds, inside = 300, 1000, 0
    for lost, gained, _ in rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], rounds):
        low, high = paired_interval(int(lost), int(gained), n)
        inside += low <= p_lost - p_gained <= high
    assert 0.93 <= inside / rounds <= 0.98  # s.e. 0.007


def test_mean_interval_is_the_t_interval():
    # t(0.975, 3) = 3.1824
    low, high = mean_interval(np.array([0.1, 0.2, 0.3, 0.4]), 0.0, 1.0)
    half = 3.1824 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-4)
    assert mean_interval(np.array([0.4]), 0.0, 1.0) == (0.0, 1.0)


# ---------------------------------------------------------------- with labels


def test_top1_and_per_class():
    outcome = outcome_of([0, 1, 2, 2, 1], [0, 1, 2, 0, 1], class_names=["cat", "dog", "owl"])
    found = outcome.accuracy
    assert (found.measure, found.part, found.samples) == ("top1", "test", 5)
    assert found.top1 == pytest.approx(0.8)
    assert (found.low, found.high) == wilson(4, 5)
    assert found.per_class == {"cat": 0.5, "dog": 1.0, "owl": 1.0}
    assert outcome.predictions.tolist() == [0, 1, 2, 2, 1]
    assert outcome.right is not None
    assert outcome.right.tolist() == [True, True, True, False, True]
    assert found.flipped is found.drop is None


def test_one_class_and_missing_names():
    found = outcome_of([2, 2, 1], [2, 2, 2], class_names=["only", "two"]).accuracy
    assert found.per_class == {"2": pytest.approx(2 / 3)}


def test_paired_drop_counts_lost_less_gained():
    labels = [0] * 100
    dense = outcome_of([0] * 90 + [1] * 10, labels)  # 90 right
    slim = outcome_of([1] * 6 + [0] * 86 + [2] * 8, labels, reference=dense)  # 6 lost, 2 gained
    found = slim.accuracy
    assert found.flipped == 16  # 6 lost, 2 gained, 8 from one wrong answer to another
    assert found.drop == pytest.approx(4.0)
    low, high = paired_interval(6, 2, 100)
    assert (found.drop_low, found.drop_high) == pytest.approx((100 * low, 100 * high))


def test_a_network_against_itself_has_not_dropped():
    dense = outcome_of([0, 1, 0, 1], [0, 1, 1, 1])
    again = outcome_of([0, 1, 0, 1], [0, 1, 1, 1], reference=dense).accuracy
    assert (again.drop, again.flipped) == (0.0, 0)
    assert again.drop_low is not None
    assert again.drop_low < 0 < (again.drop_high or 0.0)


def test_a_reference_of_another_part_is_refused():
    dense = outcome_of([0, 1], [0, 1], name="validation")
    with pytest.raises(DataError, match=r"'validation' \(2,\).*'test' \(2,\)"):
        outcome_of([0, 1], [0, 1], reference=dense)
    shorter = outcome_of([0], [0])
    with pytest.raises(DataError, match=r"\(1,\).*\(2,\)"):
        outcome_of([0, 1], [0, 1], reference=shorter)


def test_positions_count_as_shares_of_a_sample():
    logits = torch.zeros(2, 3, 1, 2)
    logits[:, 1] = 1.0  # class 1 everywhere
    y = torch.tensor([[[1, 1]], [[1, 0]]])
    outcome = evaluate(Fixed(), Rows(logits, y))
    assert outcome.accuracy.top1 == pytest.approx(0.75)
    assert outcome.scores is not None
    assert outcome.scores.tolist() == [1.0, 0.5]
    assert outcome.right is None
    other = logits.clone()
    other[1, 0] = 2.0  # class 0 on the second map: its second position is right now
    slim = evaluate(Fixed(), Rows(other, y), reference=outcome).accuracy
    assert (slim.flipped, slim.drop) == (2, 0.0)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_single_logit_says_yes_above_zero(shape):
    logits = torch.tensor([-1.0, 2.0, 3.0, -4.0]).reshape(shape)
    outcome = evaluate(Fixed(), Rows(logits, torch.tensor([0, 1, 0, 0])))
    assert outcome.predictions.tolist() == [0, 1, 1, 0]
    assert outcome.accuracy.top1 == 0.75


def test_a_metric_in_place_of_top1():
    def top2(logits, y):
        return (logits.topk(2).indices == y[:, None]).any(1)

    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    y = torch.tensor([1, 2, 1])
    found = evaluate(Fixed(), Rows(logits, y), metric=top2).accuracy
    assert found.measure == "top2"
    assert found.top1 == pytest.approx(2 / 3)


def test_a_fractional_metric_has_a_paired_t_interval():
    def closeness(outputs, y):
        return 1 - (outputs[:, 0] - y).abs()

    y = torch.tensor([0.5, 0.5, 0.5, 0.5])
    dense = evaluate(Fixed(), Rows(torch.full((4, 2), 0.5), y), metric=closeness)
    worse = torch.tensor([0.5, 0.4, 0.3, 0.2])[:, None].repeat(1, 2)
    slim = evaluate(Fixed(), Rows(worse, y), metric=closeness, reference=dense).accuracy
    assert slim.drop == pytest.approx(15.0)
    half = 3.1824 * np.std([0.0, 0.1, 0.2, 0.3], ddof=1) / 2
    assert slim.drop_low == pytest.approx(100 * (0.15 - half), abs=0.01)

    def other(outputs, y):
        return closeness(outputs, y)

    with pytest.raises(DataError, match="measured 'closeness', here it is 'other'"):
        evaluate(Fixed(), Rows(worse, y), metric=other, reference=dense)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda o, y: o.mean(), r"returned \(\)"),
        (lambda o, y: 3.0, "returned float"),
        (lambda o, y: torch.full((len(y),), 7.0), "scores from 7 to 7"),
        (lambda o, y: torch.full((len(y),), math.nan), "expected 0"),
    ],
)
def test_a_metric_that_is_none_is_refused(metric, said):
    with pytest.raises(ConfigError, match=said):
        outcome_of([0, 1], [0, 1], metric=metric)


# ---------------------------------------------------------------- without labels


def test_unlabelled_counts_agreement_with_the_reference():
    dense = outcome_of([0, 1, 2, 1], None)
    assert (dense.accuracy.measure, dense.accuracy.top1) == ("agreement", 1.0)
    assert dense.accuracy.flipped is None
    assert dense.right is None
    slim = outcome_of([0, 1, 2, 2], None, reference=dense, class_names=["a", "b", "c"])
    found = slim.accuracy
    assert (found.measure, found.top1, found.flipped) == ("agreement", 0.75, 1)
    assert (found.low, found.high) == wilson(3, 4)
    assert found.per_class == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert found.drop is None
    assert slim.right is not None
    assert slim.right.tolist() == [True, True, True, False]


def test_a_reference_without_labels_does_not_measure_a_drop():
    dense = outcome_of([0, 1], None)
    with pytest.raises(DataError, match="measured 'agreement', here it is 'top1'"):
        outcome_of([0, 1], [0, 1], reference=dense)


# ---------------------------------------------------------------- what can be wrong


def test_nan_is_named():
    logits = logits_of([0, 1, 2, 0])
    logits[2, 1] = math.nan
    with pytest.raises(ModelError, match=r"NaN .* for sample 2 of 'test'"):
        evaluate(Fixed(), Rows(logits, torch.tensor([0, 1, 2, 0]), "test"), batch=2)


def test_infinite_logits_still_have_an_order():
    logits = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert evaluate(Fixed(), Rows(logits, torch.tensor([0, 1]))).accuracy.top1 == 1.0


def test_labels_beyond_the_outputs():
    with pytest.raises(DataError, match="label 3, but the network has 3 classes"):
        outcome_of([0, 1], [0, 3])


def test_labels_that_are_no_classes():
    with pytest.raises(DataError, match="float32"):
        evaluate(Fixed(), Rows(logits_of([0, 1]), torch.tensor([0.5, 1.5])))
    with pytest.raises(DataError, match="expected class numbers"):
        evaluate(Fixed(), Rows(logits_of([0, 1]), torch.tensor([[0], [1]])))


def test_an_empty_part():
    with pytest.raises(DataError, match="'test' is empty"):
        evaluate(Fixed(), Rows(torch.zeros(0, 3), torch.zeros(0).long(), "test"))


def test_a_network_that_fails_says_on_what():
    part = Rows(torch.zeros(4, 5), torch.zeros(4).long(), "test")
    with pytest.raises(ModelError, match=r"failed on a batch \(4, 5\) of 'test'"):
        evaluate(nn.Linear(3, 2), part)


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x], lambda x: {"out": x}])
def test_the_first_output_counts(wrap):
    part = Rows(logits_of([0, 1]), torch.tensor([0, 1]))
    assert evaluate(Wrapped(wrap), part).accuracy.top1 == 1.0


@pytest.mark.parametrize("wrap", [lambda x: None, lambda x: (), lambda x: {"out": 3}])
def test_an_output_that_is_no_tensor(wrap):
    part = Rows(logits_of([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ModelError, match="expected a tensor of logits"):
        evaluate(Wrapped(wrap), part)


# ---------------------------------------------------------------- nothing is left behind


def test_modes_are_as_before_even_when_it_fails():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    model.train()
    model[2].eval()  # a norm that its owner froze
    before = {k: v.clone() for k, v in model.state_dict().items()}
    part = Rows(torch.randn(8, 3), torch.zeros(8).long())
    first, second = (evaluate(model, part) for _ in range(2))
    assert first.predictions.tolist() == second.predictions.tolist()  # dropout was off
    with pytest.raises(DataError):
        evaluate(model, Rows(torch.randn(8, 3), torch.full((8,), 9)))
    assert [m.training for m in model] == [True, True, False]
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_images_in_a_network_that_views_its_activations():
    """``view`` fails on channels-last activations; the answer must not depend on the trial."""

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.out = nn.Linear(4 * 16, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.out(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model, x = Views(), torch.randn(10, 3, 6, 6)
    with torch.no_grad():
        expected = model(x).argmax(1)
    outcome = evaluate(model, Rows(x, torch.zeros(10).long()), batch=4)
    assert outcome.predictions.tolist() == expected.tolist()


def test_a_device_that_is_not_here():
    with pytest.raises(ConfigError, match="no device named 'tpu9'"):
        usable_device("tpu9")
    with pytest.raises(ConfigError, match="no device named 'meta'"):
        usable_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees 0 CUDA devices"):
            outcome_of([0], [0], device="cuda")


@pytest.mark.gpu
def test_a_model_is_moved_back():
    model = nn.Linear(2, 2)
    with evaluating(model, "cuda") as place:
        assert place.type == "cuda" == model.weight.device.type
    assert model.weight.device.type == "cpu"


# ---------------------------------------------------------------- the promise


def dropped(lost, gained, n):
    right = [0] * (n - gained) + [1] * gained
    dense = outcome_of(right, [0] * n)
    return outcome_of([1] * lost + [0] * (n - lost), [0] * n, reference=dense)


def test_a_promise_that_holds_for_sure():
    kept, text = promise(dropped(0, 0, 2000), 1.0)
    assert kept
    assert text.startswith("kept")
    assert "0.00 points" in text
    assert "straddles" not in text


def test_a_promise_that_holds_within_the_interval():
    kept, text = promise(dropped(3, 0, 400), 1.0)
    assert kept
    assert "dropped by 0.75 points" in text
    assert "straddles" in text


def test_a_promise_that_is_broken():
    kept, text = promise(dropped(40, 0, 400), 1.0)
    assert not kept
    assert text.startswith("broken")
    assert "10.00 points" in text
    assert "straddles" not in text
    kept, text = promise(dropped(5, 0, 400).accuracy, 1.0)
    assert not kept
    assert "straddles" in text


def test_the_limit_itself_is_kept():
    assert promise(dropped(5, 0, 1000), 0.5)[0]
    assert promise(dropped(3, 0, 1000), 0.3)[0]
    assert not promise(dropped(6, 0, 1000), 0.5)[0]


def test_without_labels_the_changed_share_is_the_bound():
    dense = outcome_of([0] * 200, None)
    slim = outcome_of([1] * 2 + [0] * 198, None, reference=dense)
    kept, text = promise(slim, 1.0)
    assert kept
    assert "without labels" in text
    assert "1.00 %" in text
    assert not promise(slim, 0.5)[0]


def test_a_promise_needs_a_reference_and_a_number():
    with pytest.raises(DataError, match="without a reference"):
        promise(outcome_of([0], [0]), 1.0)
    with pytest.raises(ConfigError, match="nan"):
        promise(dropped(0, 0, 10), math.nan)
