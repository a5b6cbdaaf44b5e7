"""PyTorch's own runner: what it changes is put back, whatever the order and whatever happens."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest
import torch
from torch import nn

from mint_deploy import plugins
from mint_deploy._torch_hold import Hold
from mint_deploy.errors import ConfigError, DataError, ModelError, RuntimeMissing, UnknownName

pt = plugins.load("runtime", "pytorch")
EXAMPLE = (torch.zeros(1, 3, 8, 8),)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
    )


def image(batch=2, seed=0):
    return {"input": np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), np.float32)}


def plainly(module, inputs):
    modes = [m.training for m in module.modules()]
    module.eval()
    with torch.no_grad():
        out = module(torch.from_numpy(inputs["input"])).numpy()
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode
    return out


# ---------------------------------------------------------------- what is put back


def test_mode_and_threads_are_put_back():
    module = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    module[1].eval()
    before = torch.get_num_threads()
    with pt.runner(module, threads=2, example_inputs=(torch.zeros(1, 4),)):
        assert not module.training
        assert torch.get_num_threads() == 2
    assert module.training
    assert module[0].training
    assert not module[1].training
    assert torch.get_num_threads() == before


def test_a_runner_that_fails_on_its_example_leaves_nothing_changed():
    module = net().train()
    before, strides = torch.get_num_threads(), module[0].weight.stride()
    wrong = (torch.zeros(1, 5, 8, 8),)
    runner = pt.runner(module, threads=before + 1, example_inputs=wrong, channels_last=True)
    with pytest.raises(DataError):
        runner.__enter__()
    assert module.training
    assert torch.get_num_threads() == before
    assert module[0].weight.stride() == strides


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_runners_of_one_module_hold_it_until_the_last_is_left(first_out):
    module = net().train()
    runners = [pt.runner(module, threads=2, example_inputs=EXAMPLE) for _ in range(2)]
    for runner in runners:
        runner.__enter__()
    expected = plainly(net(), image())
    runners[first_out].__exit__(None, None, None)
    other = runners[1 - first_out]
    assert not module.training, "the other one still computes"
    assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(other.infer(image())["output"], expected)
    other.__exit__(None, None, None)
    assert module.training
    other.__exit__(None, None, None)  # once more changes nothing
    assert module.training


def test_a_second_thread_count_in_one_process_is_refused():
    one = pt.runner(net(), threads=1, example_inputs=EXAMPLE)
    two = pt.runner(net(), threads=2, example_inputs=EXAMPLE)
    with one:
        with pytest.raises(
            ConfigError, match=r"one thread count for the whole process: .*has 1.*for 2"
        ):
            two.__enter__()
        assert torch.get_num_threads() == 1
        one.infer(image())
    with two:
        two.infer(image())


def test_the_layout_of_the_weights_is_put_back_and_the_values_are_not():
    module = net()
    module[0].weight.data = torch.empty_strided((8, 3, 3, 3), (1, 8, 24, 72)).copy_(
        module[0].weight.data
    )
    strides, bias = module[0].weight.stride(), module[0].bias.stride()
    with pt.runner(module, example_inputs=EXAMPLE, channels_last=True) as live:
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert live.engine.flags["memory_format"] == "channels_last"
        with torch.no_grad():
            module[0].weight += 1.0
        changed = module[0].weight.detach().clone()
    assert module[0].weight.stride() == strides
    assert module[0].bias.stride() == bias
    torch.testing.assert_close(module[0].weight.detach(), changed, rtol=0, atol=0)


def test_one_module_in_two_layouts_at_once_is_refused():
    module = net()
    with (
        pt.runner(module, example_inputs=EXAMPLE, channels_last=True),
        pytest.raises(ConfigError, match="one memory format"),
    ):
        pt.runner(module, example_inputs=EXAMPLE).__enter__()
    with pt.runner(module, example_inputs=EXAMPLE):
        pass


def test_channels_last_computes_the_same():
    with pt.runner(net(), example_inputs=EXAMPLE, channels_last=True) as live:
        found = live.infer(image(3))["output"]
    np.testing.assert_allclose(found, plainly(net(), image(3)), rtol=1e-5, atol=1e-6)


def test_a_hold_counts_over_threads():
    hold, module = Hold(), net().train()
    inside = threading.Barrier(4)

    def work():
        with hold.evaluation(module):
            inside.wait(10)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    for thread in threads:
        thread.join(10)
    assert module.training
    assert hold._held == {}


# ---------------------------------------------------------------- what it takes and gives


def test_several_inputs_and_named_outputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "product": a * b}

    examples = (torch.ones(1, 2), torch.ones(1, 2))
    with pt.runner(Two(), example_inputs=examples, names=("a", "b")) as live:
        found = live.infer({"b": np.full((1, 2), 3, np.float32), "a": np.ones((1, 2), np.float32)})
        assert found["sum"].tolist() == [[4, 4]]
        assert found["product"].tolist() == [[3, 3]]
    with pytest.raises(ConfigError, match="1 names for 2 inputs"):
        pt.runner(Two(), example_inputs=examples)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten()])
def test_an_output_is_never_the_memory_of_an_input(module):
    inputs = image()
    with pt.runner(module, example_inputs=EXAMPLE) as live:
        found = live.infer(inputs)["output"]
    found += 1.0
    np.testing.assert_array_equal(inputs["input"], image()["input"])


def test_no_gradient_is_recorded():
    module = net()
    with pt.runner(module, example_inputs=EXAMPLE) as live:
        live.infer(image())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_the_hash_of_an_engine_follows_the_weights():
    module = nn.Linear(3, 2)
    first = pt.build(module).sha256
    assert pt.build(module).sha256 == first
    with torch.no_grad():
        module.bias[0] += 1
    assert pt.build(module).sha256 != first


def test_a_file_is_refused():
    with pytest.raises(ModelError, match="for an ONNX file use the runtime onnxruntime"):
        pt.build("model.onnx")


# ---------------------------------------------------------------- modes


def test_modes_are_named_and_recorded():
    with pytest.raises(UnknownName, match="did you mean 'compile'"):
        pt.runner(net(), example_inputs=EXAMPLE, mode="compiled")
    with pytest.raises(ConfigError, match="needs a module on a GPU, and this one is on cpu"):
        pt.runner(net(), example_inputs=EXAMPLE, mode="cuda_graph")
    assert pt.runner(net(), example_inputs=EXAMPLE).engine.flags == {
        "mode": "eager, inference mode",
        "device": "cpu",
        "intra_op_threads": "1",
        "memory_format": "contiguous",
    }


def test_compile_runs_what_torch_compile_returns_and_eager_does_not(monkeypatch):
    asked = []

    def double(module):
        asked.append(module)
        return lambda x: module(x) * 2

    monkeypatch.setattr(torch, "compile", double)
    module = net()
    with pt.runner(module, example_inputs=EXAMPLE, mode="compile") as live:
        np.testing.assert_allclose(
            live.infer(image())["output"], 2 * plainly(net(), image()), rtol=1e-6
        )
        assert live.engine.flags["mode"] == "compile, inference mode"
    assert asked == [module]
    with pt.runner(module, example_inputs=EXAMPLE) as live:
        np.testing.assert_array_equal(live.infer(image())["output"], plainly(net(), image()))


def test_compile_without_a_compiler_is_told_how_to_get_one(monkeypatch):
    class InvalidCxxCompiler(RuntimeError):
        """As torch._inductor.exc has it."""

    def refuse(*_):
        raise InvalidCxxCompiler("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda _: refuse)
    with pytest.raises(RuntimeMissing, match=r"needs a C\+\+ compiler.*apt-get install g\+\+"):
        pt.runner(net(), example_inputs=EXAMPLE, mode="compile").__enter__()


@pytest.mark.slow  # a minute: the first compilation builds headers
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_code_computes_the_same(channels_last):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    settings = {"mode": "compile", "channels_last": channels_last}
    with pt.runner(net(), example_inputs=EXAMPLE, **settings) as live:
        for batch in (1, 3):
            found = live.infer(image(batch))["output"]
            np.testing.assert_allclose(found, plainly(net(), image(batch)), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- on a GPU


def cuda():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda_graph"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_computes_what_the_cpu_computes(mode, channels_last):
    module = net().to(cuda())
    example = tuple(x.cuda() for x in EXAMPLE)
    tf32 = torch.backends.cudnn.allow_tf32
    settings = {"mode": mode, "channels_last": channels_last}
    with pt.runner(module, example_inputs=example, **settings) as live:
        assert live.engine.flags["device"] == "cuda"
        assert live.engine.flags["tf32"] == "off"
        for batch in (1, 3, 1):
            for seed in range(3):
                found = live.infer(image(batch, seed))["output"]
                expected = plainly(net(), image(batch, seed))
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.gpu
def test_a_cuda_graph_is_recorded_once_for_each_shape():
    module = net().to(cuda())
    example = tuple(x.cuda() for x in EXAMPLE)
    with pt.runner(module, example_inputs=example, mode="cuda_graph") as live:
        for batch in (1, 2, 1, 2):
            live.infer(image(batch))
        assert len(live._graphs) == 2
    assert not live._graphs
