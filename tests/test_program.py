"""Cuts on the exported program: numbers that the code holds adapt, and everything else stays as it was."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from literal_nets import LITERAL_NETS, Filled, HardView, Heads, Splits, Stem
from torch import Tensor, nn

from mint_deploy import loading
from mint_deploy.artifacts import PruningPlan
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.compose import compose
from mint_deploy.data import as_part
from mint_deploy.errors import DataError, ModelError, PlanError
from mint_deploy.export import export
from mint_deploy.files import write_value
from mint_deploy.graph import Graph
from mint_deploy.inputs import outputs_of
from mint_deploy.models import state_digest
from mint_deploy.moments import sample
from mint_deploy.plan import make_plan
from mint_deploy.program import Program
from mint_deploy.program_export import export_program
from mint_deploy.program_form import example_of, form_of
from mint_deploy.pt2 import load_pt2, save_pt2
from mint_deploy.repair import refit
from mint_deploy.report.view import settings_rows
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.verify import prove


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def fresh(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    return model


def less(graph: Graph) -> PruningPlan:
    """Another number from every group, not the last ones."""
    keep = {}
    for i, (name, group) in enumerate(graph.groups.items()):
        gone = {0} if group.size < 4 or i % 2 else {0, 2}
        keep[name] = [u for u in range(group.size) if u not in gone]
    return make_plan(graph, keep)


@pytest.mark.parametrize("kind", LITERAL_NETS, ids=lambda kind: kind.__name__)
def test_a_width_in_the_code_is_frozen_in_modules_and_cut_in_the_program(
    kind: type[nn.Module], tmp_path
):
    model, x = fresh(kind), images()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen = list(model.named_modules())
    at_modules = trace(model, x)
    program = export_program(model, x)
    at_program = trace(program, x)
    assert at_modules.cuttable_macs_share < 0.7
    assert at_program.cuttable_macs_share == 1.0
    edges = {"meets the network's input", "reaches the network's output"}
    assert set(at_program.frozen.values()) <= edges
    plan = less(at_program)
    slim, made, proof = prove(program, plan, x)
    assert made == plan
    assert proof.max_error < 1e-12
    assert proof.least_power > 1e-6
    assert all(g.status == "proven" for g in proof.groups.values())
    # names, values and the user's own model are as they were
    assert set(model.state_dict()) <= set(program.state_dict())
    assert list(model.named_modules()) == seen
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(images(5)), program(images(5)))
    # and ONNX has the narrow sizes
    written = export(slim, tmp_path / "slim.onnx", x, "cpu", dynamic_batch=True)
    assert written.max_error < 1e-4
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_plan_says_which_number_of_which_call_it_rewrites():
    program = export_program(fresh(HardView), images())
    graph = trace(program, images())
    assert [c.attribute for c in graph.constants] == ["code.view_size[1]"]
    slim = cut(program, make_plan(graph, {"features.0": [1, 3, 5]}))
    assert program.code.view_size == [1, 256]
    assert slim.code.view_size == [1, 48]
    assert slim.get_submodule("features.0").weight.shape[0] == 3
    assert slim(images(7)).shape == (7, 10)


def test_node_names_and_plans_are_the_same_every_time():
    first, second = (trace(export_program(fresh(Heads), images()), images()) for _ in range(2))
    assert first.constants == second.constants
    assert less(first).digest() == less(second).digest()


def test_reasons_name_the_line_of_the_users_code():
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.cumsum(1)

    class Net(Stem):
        def make(self) -> None:
            self.middle = Sums()

    graph = trace(export_program(fresh(Net), images()), images())
    assert "in 'middle', test_program.py:" in graph.frozen["stem"]


# ---------------------------------------------------------------- files


def saved(folder, kind: type[nn.Module], **about: str) -> tuple[nn.Module, PruningPlan]:
    program = export_program(fresh(kind), images())
    slim, plan, _ = prove(program, less(trace(program, images())), images())
    write_value(folder / "plan.json", plan)
    loading.save(slim, folder / "slim.safetensors", metadata={"plan": plan.digest(), **about})
    return slim, plan


def test_a_cut_program_comes_back_from_its_folder(tmp_path):
    slim, _ = saved(tmp_path, Filled)
    torch.manual_seed(5)
    back = loading.load(tmp_path, Filled)  # other weights, the same code
    assert isinstance(back, Program)
    assert torch.equal(back(images(3)), slim(images(3)))
    again = loading.load(tmp_path, export_program(fresh(Filled), images()))
    assert torch.equal(again(images(3)), slim(images(3)))


def test_a_plan_for_the_program_is_refused_by_the_modules():
    model = fresh(HardView)
    plan = less(trace(export_program(model, images()), images()))
    with pytest.raises(PlanError, match="--export-level"):
        cut(model, plan)


def test_a_damaged_description_of_the_inputs_is_no_example(tmp_path):
    for form in ("", "[]", '{"args":[{"shape":[2,-1],"dtype":"float32"}],"kwargs":{}}',
                 '{"args":[{"shape":[99999999,99999],"dtype":"float32"}],"kwargs":{}}',
                 '{"args":[{"shape":[2],"dtype":"load"}],"kwargs":{}}'):  # fmt: skip
        with pytest.raises(DataError, match="no description of example inputs"):
            example_of(form)


def test_the_form_of_inputs_survives_as_text():
    args, kwargs = (), {"image": images(), "ids": torch.zeros(2, 3, dtype=torch.int64), "scale": 2}
    found = example_of(form_of((args, kwargs)))
    assert found["image"].shape == (2, 3, 8, 8)
    assert found["ids"].dtype == torch.int64
    assert found["scale"] == 2
    assert form_of((([images()],), {})) == ""


# ---------------------------------------------------------------- after the cut


def test_moments_repair_and_batchnorm_see_the_layers_of_a_program():
    model = fresh(HardView)
    data = as_part((images(64), torch.zeros(64, dtype=torch.int64)))
    program = export_program(model, images())
    graph = trace(program, images())
    moments = sample(program, graph, data, images=64, batch=32)
    plain = sample(model, trace(model, images(), probe=False), data, images=64, batch=32)
    assert set(moments.consumers) == {"classifier.weight"}
    assert not plain.consumers  # at the modules it is frozen, so nothing reads a group
    assert moments.consumers["classifier.weight"].sensitivity.max() > 0
    slim, plan, _ = prove(program, less(graph), images())
    wrong = F.mse_loss(slim(images(64)), model(images(64)))
    assert refit(slim, moments, plan) == ["classifier.weight"]
    assert F.mse_loss(slim(images(64)), model(images(64))) < wrong
    before = slim.get_submodule("features.1").running_mean.clone()
    recalibrate_batchnorm_(slim, data, images=64, batch=32)
    assert not torch.equal(slim.get_submodule("features.1").running_mean, before)


def test_training_is_that_of_the_modules():
    model = fresh(HardView)
    model.drop.p = 0.0
    program = export_program(model, images())
    x = images(6)
    for net in (model, program):
        net.train()
        net(x).square().sum().backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(program.state_dict()[name], tensor, atol=1e-5), name
    assert int(program.state_dict()["features.1.num_batches_tracked"]) == 1


def test_dropout_drops_in_training_alone():
    program = export_program(fresh(HardView), images())
    assert torch.equal(program(images()), program(images()))
    program.train()
    assert not torch.equal(program(images()), program(images()))
    program.get_submodule("drop").eval()
    program.get_submodule("features.1").eval()
    assert torch.equal(program(images()), program(images()))


def test_a_part_under_no_grad_has_no_gradient():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x).view(-1, 4)
            return self.b(y)

    program = export_program(fresh(Held), torch.randn(2, 4))
    program(torch.randn(3, 4)).sum().backward()
    assert program.get_submodule("a").weight.grad is None
    assert program.get_submodule("b").weight.grad is not None


def test_heads_of_a_transformer_layer_leave_a_program():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer(x).mean(1))

    x = torch.randn(2, 5, 16)
    program = export_program(fresh(Layer), x)
    graph = trace(program, x)
    assert {n: g.size for n, g in graph.groups.items()} == {
        "layer.self_attn": 4,
        "layer.linear1": 24,
    }
    slim, _, proof = prove(program, less(graph), x)
    assert proof.max_error < 1e-12
    assert not any(g.status == "rolled back" for g in proof.groups.values())
    assert slim(torch.randn(3, 5, 16)).shape == (3, 3)  # "heads times samples" in the code follows


def test_a_cut_program_is_kept_as_pt2(tmp_path):
    program = export_program(fresh(Filled), images())
    slim, _, _ = prove(program, less(trace(program, images())), images())
    save_pt2(slim, tmp_path / "slim.pt2", images(), dynamic_batch=True)
    assert torch.equal(load_pt2(tmp_path / "slim.pt2")(images(5)), slim(images(5)))


def test_a_cut_program_is_cut_again():
    program = export_program(fresh(Splits), images())
    once, first, _ = prove(program, less(trace(program, images())), images())
    graph = trace(once, images())
    assert graph.groups["stem"].size == 6
    twice, second, proof = prove(once, less(graph), images())
    assert proof.max_error < 1e-12
    assert twice.code.split_split_size == 4
    at_once = cut(program, compose(first, second))
    assert torch.equal(at_once(images()), twice(images()))
    assert vars(at_once.code)["split_split_size"] == 4


# ---------------------------------------------------------------- what a program keeps


class Tied(nn.Module):
    """One weight under two names, one module at two places, a keyword, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(8)
        self.again = self.norm
        self.table = nn.Parameter(torch.randn(8), requires_grad=False)
        self.register_buffer("hidden", torch.ones(8), persistent=False)

    def forward(self, x: Tensor, *, flag: bool = True, scale: Tensor) -> dict[str, object]:
        y = self.again(self.norm(self.first(x))) + self.table * self.hidden
        return {"y": self.second(y) * scale, "rest": [y if flag else x, 3]}


def test_shared_tensors_flags_and_structures_stay():
    model = fresh(Tied)
    inputs = {"x": torch.randn(2, 8), "flag": True, "scale": torch.ones(2, 8)}
    program = export_program(model, inputs)
    assert list(program.state_dict()) == list(model.state_dict())
    assert program.first.weight is program.second.weight
    assert program.norm is program.again
    assert not program.table.requires_grad
    other = {"scale": torch.rand(5, 8), "x": torch.randn(5, 8), "flag": True}
    found, expected = program(**other), model(**other)
    assert found.keys() == expected.keys()
    assert found["rest"][1] == 3
    assert all(
        torch.equal(a, b) for a, b in zip(outputs_of(found), outputs_of(expected), strict=True)
    )
    assert program.argument_names == ("x",)
    with pytest.raises(ModelError, match="the argument True, and got False"):
        program(**{**other, "flag": False})
    with pytest.raises(ModelError, match="arguments of the form"):
        program(other["x"])
    with pytest.raises(ModelError, match=r"inputs of \[8\] a sample, and got \[5, 4\]"):
        program(**{**other, "x": torch.randn(5, 4)})
    copied = copy.deepcopy(program)
    assert copied.first.weight is copied.second.weight
    assert copied.first.weight is not program.first.weight
    assert state_digest(copied) == state_digest(program)
    assert program.first.weight is not model.first.weight


def test_a_program_goes_where_its_inputs_are():
    program = export_program(fresh(Filled), images()).to("meta")
    found = program(images().to("meta"))
    assert found.is_meta  # the zeros inside are made there, too
    assert found.shape == (2, 10)


def test_tensors_written_in_the_code_are_buffers_and_are_cut_with_their_channels():
    class Written(Stem):
        def middle(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0, 4.0] * 4).view(1, 16, 1, 1) + torch.tensor(0.5)

    model = fresh(Written)
    program = export_program(model, images())
    own = set(program.state_dict()) - set(model.state_dict())
    assert {tuple(program.state_dict()[name].shape) for name in own} == {(16,), ()}
    graph = trace(program, images())
    assert graph.groups["stem"].size == 16
    slim, _, proof = prove(program, less(graph), images())
    assert proof.max_error < 1e-12
    assert {tuple(slim.state_dict()[name].shape) for name in own} == {(14,), ()}


# ---------------------------------------------------------------- what torch.export refuses


def test_code_that_branches_on_values_is_refused_in_one_line(capfd):
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"torch\.export refuses this model") as caught:
        export_program(Branches(), torch.ones(2, 3))
    assert "test_program.py:" in str(caught.value)
    assert "leave out --export-level" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_code_with_a_written_batch_is_fixed_to_it_and_says_so():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(4, 12))

    program = export_program(Fixed(), torch.randn(4, 3, 4))
    assert not program.graph.open_batch
    assert program(torch.randn(4, 3, 4)).shape == (4, 4)
    with pytest.raises(ModelError, match="exported for 4 samples and got 2"):
        program(torch.randn(2, 3, 4))


def test_a_loop_over_samples_is_fixed():
    class Loops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * (i + 1) for i, row in enumerate(x)])

    program = export_program(Loops(), torch.randn(3, 4))
    assert not program.graph.open_batch
    assert "another way" in program.graph.why_closed
    x = torch.randn(3, 4)
    assert torch.equal(program(x), Loops()(x))


def test_arithmetic_with_the_batch_follows_it():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            y = torch.cat([self.fc(x), x.new_zeros(2 * n + 1, 4)])
            return y.view(1, 3 * n + 1, 4)[:, : n + 1] + n

    program = export_program(Counts(), torch.randn(1, 4))
    model = Counts()
    model.load_state_dict(program.state_dict())
    for n in (1, 2, 7):
        x = torch.randn(n, 4)
        assert torch.equal(program(x), model(x))


def test_a_program_that_is_not_the_model_is_refused(monkeypatch):
    from mint_deploy import program_graph

    build = program_graph.Builder.build

    def wrong(self):
        made = build(self)
        step = made.graph.steps[-1]
        last = dataclasses.replace(step, args=(*step.args[:-1], None))  # the bias is lost
        made.graph = dataclasses.replace(made.graph, steps=(*made.graph.steps[:-1], last))
        return made

    monkeypatch.setattr(program_graph.Builder, "build", wrong)
    with pytest.raises(ModelError, match="does not compute what the model does"):
        export_program(fresh(HardView), images())


def test_a_child_named_code_is_in_the_way():
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.code(x)

    with pytest.raises(ModelError, match="child named 'code'"):
        export_program(Coded(), torch.randn(2, 4))


# ---------------------------------------------------------------- a whole run


def test_a_run_cuts_the_program_and_its_folder_gives_it_back(tmp_path):
    import mint_deploy as md

    torch.manual_seed(0)
    labels = torch.arange(60) % 10
    data = (torch.rand(60, 3, 8, 8), labels)
    result = md.compress(
        fresh(HardView), data, export_level=True, macs=0.6, epochs=1, images=32, until="export",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert result.report["groups"]["groups"]
    assert "exported program" in dict(settings_rows(result.report["run"]))["Model"]
    slim = md.load(tmp_path / "run", HardView)
    assert isinstance(slim, Program)
    assert slim.code.view_size[1] == 16 * slim.get_submodule("features.0").weight.shape[0] < 256


def test_a_run_refuses_a_program_of_one_batch(tmp_path):
    class Two(HardView):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if x.shape[0] == 3 else 1) ** 0.5

    import mint_deploy as md

    data = (torch.rand(60, 3, 8, 8), torch.arange(60) % 10)
    with pytest.raises(ModelError, match=r"fixed to 2 samples: .*leave out --export-level"):
        md.compress(fresh(Two), data, export_level=True, out=str(tmp_path / "run"))
