"""Export: whatever forms a network's inputs and outputs have."""

from __future__ import annotations

import nets
import pytest
import torch
from export_nets import CLASSES, Tiny, run, samples, target
from torch import Tensor, nn

from mint_deploy.errors import ExportMismatch, ModelError
from mint_deploy.export import export
from mint_deploy.parity import relative_error

# ---------------------------------------------------------------- forms of models


class Forms(nn.Module):
    """Two inputs and a constant; a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor | None = None, *, twice: bool = False):
        a, b = self.one(left), self.two(left if right is None else right)
        return {"sum": a + b * (2 if twice else 1), "pair": (a, b)}


@pytest.mark.parametrize("opset", [17, 18])
def test_inputs_and_outputs_are_named_after_the_forward(tmp_path, opset):
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    model, path = Forms(), tmp_path / "m.onnx"
    value = export(model, path, {"left": x, "right": y, "twice": True}, target(opset, batch=2))
    assert [s.name for s in value.inputs] == ["left", "right"]
    assert [s.name for s in value.outputs] == ["sum", "pair_0", "pair_1"]
    expected = model(x, y, twice=True)
    found = run(path, left=x, right=y)
    for a, b in zip(found, (expected["sum"], *expected["pair"]), strict=True):
        assert relative_error(a, b.detach().numpy()) < 1e-6
    if opset == 17:  # what the names come from is the same for both exporters
        both = export(model, path, (x, y), target(opset, batch=2))
        assert [s.name for s in both.inputs] == ["left", "right"]


def test_an_output_is_called_logits_only_where_it_has_one_entry_a_class(tmp_path):
    path = tmp_path / "m.onnx"
    assert export(Tiny(), path, samples(1), target(17)).outputs[0].name == "output"
    four = export(Tiny(), path, samples(1), target(17), class_names=CLASSES[:4])
    assert four.outputs[0].name == "output"


class Ignores(nn.Module):
    """Its second input is not used."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2


def test_an_input_that_is_not_used_is_kept_or_refused(tmp_path):
    """The older exporter drops it, and the file would have another face than the model."""
    both = (samples(1), samples(1))
    value = export(Ignores(), tmp_path / "new.onnx", both, target(18))
    assert [s.name for s in value.inputs] == ["x", "y"]
    with pytest.raises(ModelError, match="an input that forward does not use must be left out"):
        export(Ignores(), tmp_path / "old.onnx", both, target(17))
    assert not (tmp_path / "old.onnx").exists()


def test_whole_numbers_as_inputs_stay_in_their_range(tmp_path):
    """Noise would be no index of an embedding."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    value = export(model, tmp_path / "m.onnx", torch.tensor([[0, 3, 6]]), target(17, batch=2))
    assert (value.inputs[0].dtype, value.inputs[0].shape) == ("int64", (2, 3))


@pytest.mark.parametrize(
    ("name", "opset"), [("siamese", 18), ("two_outputs", 17), ("unet", 17), ("lstm", 17)]
)
def test_real_patterns_export(tmp_path, name, opset):
    """All of them by both exporters: the slow test below."""
    model, inputs = nets.build(name)
    value = export(model, tmp_path / "m.onnx", inputs, target(opset))
    assert value.max_error < 1e-5
    if name == "two_outputs":
        assert [s.name for s in value.outputs] == ["logits", "features"]
    if name == "siamese":  # the layer is called twice, so the exporter leaves its BatchNorm alone
        assert value.metadata["mint_deploy.batchnorm"].startswith("4 left, 4 of them behind")


def test_batchnorm_that_nothing_can_take_up_is_said_to_be_left(tmp_path):
    """As in a DenseNet, it stands before the ReLU and the convolution."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    value = export(model, tmp_path / "m.onnx", samples(1), target(17))
    assert value.metadata["mint_deploy.batchnorm"].startswith("1 left, 0 of them behind")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("name", list(nets.NETS))
def test_every_net_of_the_tests_exports(tmp_path, name, opset, dynamic):
    model, inputs = nets.build(name)
    value = None
    try:
        value = export(model, tmp_path / "m.onnx", inputs, target(opset, 9), dynamic_batch=dynamic)
    except (ExportMismatch, ModelError) as error:
        # what tracing bakes in, and an operator that the older exporter lacks; both are said
        assert opset == 17, error  # noqa: PT017  the refusal is one of two good outcomes
        assert name in ("item_escape", "shuffle_v2"), error  # noqa: PT017
    assert (value is not None) == (tmp_path / "m.onnx").exists()
