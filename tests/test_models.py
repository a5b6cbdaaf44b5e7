"""The zoo, MODEL specs and weight files."""

from __future__ import annotations

import os
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path

import nets
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mint_deploy import models
from mint_deploy.errors import ModelError, UnknownName
from mint_deploy.models import cifar_resnet, load_model, state_digest, zoo_names

PARAMETERS = {
    "resnet8-digits": 297_450,
    "resnet20-cifar10": 269_722,
    "resnet56-cifar10": 853_018,
    "resnet50": 25_557_032,
    "mobilenet-v2": 3_504_872,
    "densenet121": 7_978_856,
    "vgg16-bn": 138_365_992,
    "vgg16-bn-cifar10": 14_728_266,
}


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


# ---------------------------------------------------------------- the zoo


def test_every_zoo_network_has_the_papers_parameter_count() -> None:
    assert set(PARAMETERS) == set(zoo_names())
    for name, entry in models._zoo().items():
        with torch.device("meta"):  # shapes alone: VGG16 would take half a gigabyte
            model = entry.factory()
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name], name


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"vgg16-bn", "resnet50"}))
def test_zoo_networks_load_and_run(name: str) -> None:
    loaded = load_model(name)
    assert loaded.input_shape is not None
    assert not loaded.model.training
    with torch.no_grad():
        logits = loaded.model(torch.zeros(1, *loaded.input_shape))
    assert logits.shape[1] == (len(loaded.class_names) if loaded.class_names else 1000)
    assert loaded.mean is not None
    assert len(loaded.mean) == loaded.input_shape[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ["layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "fc.bias"]),
        (
            "mobilenet-v2",
            ["features.0.1.bias", "features.1.conv.2.weight", "features.2.conv.3.bias"],
        ),
        ("densenet121", ["features.denseblock4.denselayer16.conv2.weight", "features.norm5.bias"]),
        ("vgg16-bn", ["features.40.weight", "features.41.running_mean", "classifier.6.bias"]),
        ("resnet56-cifar10", ["layer3.8.conv2.weight", "linear.bias"]),
    ],
)
def test_tensor_names_are_the_published_ones(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        names = models._zoo()[name].factory().state_dict().keys()
    assert set(expected) <= set(names)


def test_densenet_reads_the_old_names(tmp_path: Path) -> None:
    loaded = load_model("densenet121", seed=1)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: tensor
        for name, tensor in loaded.model.state_dict().items()
    }
    assert old.keys() != loaded.model.state_dict().keys()
    save_file(old, tmp_path / "old.safetensors")
    assert load_model("densenet121", tmp_path / "old.safetensors").digest == loaded.digest


def test_shortcut_pads_by_its_attributes() -> None:
    shortcut = cifar_resnet.PaddedShortcut(2, 3)
    x = torch.randn(1, 4, 6, 6)
    y = shortcut(x)
    assert y.shape == (1, 9, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    shortcut.before, shortcut.after = 1, 0  # as a cut does
    assert shortcut(x).shape == (1, 5, 3, 3)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'resnet56-cifar10'"):
        load_model("resnet56-cifar")


def test_a_weights_file_as_model_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="--weights"):
        load_model("net.pth")


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_every_test_net_runs_and_its_channels_differ(name: str) -> None:
    model, inputs = nets.build(name)
    with torch.no_grad():
        first, again = model(*inputs), model(*inputs)
    if isinstance(first, dict):
        first, again = first["features"], again["features"]
    if isinstance(first, list):
        first, again = first[0], again[0]
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert first.std() > 1e-4


# ---------------------------------------------------------------- the user's own factory


def test_own_factory_from_a_file_and_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 7\n", "neighbour_of_net.py")
    write(
        tmp_path,
        """
        from torch import nn
        from neighbour_of_net import WIDTH

        def make():
            return nn.Sequential(nn.Linear(3, WIDTH), nn.Dropout())
        """,
    )
    state = torch.get_rng_state()
    loaded = load_model(f"{tmp_path}/net.py:make", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.name == "net-make"
    assert loaded.model[0].weight.shape == (7, 3)
    assert not loaded.model.training
    assert loaded.input_shape is None
    assert loaded.digest == load_model(f"{tmp_path}/net.py:make", seed=3).digest
    assert loaded.digest != load_model(f"{tmp_path}/net.py:make", seed=4).digest


def test_own_factory_from_a_module_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self):\n"
        "        super().__init__(2, 2)\n",
        "cwd_package_net.py",
    )
    monkeypatch.chdir(tmp_path)
    assert load_model("cwd_package_net:Net").model.weight.shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("def make():\n    raise ValueError('no such width')\n", "net.py:make",
         r"raised ValueError: no such width \(.*net\.py, line 2\)"),
        ("import sys\ndef make():\n    sys.exit(3)\n", "net.py:make", "raised SystemExit"),
        ("def make():\n    return 5\n", "net.py:make", "returned a int; expected an nn.Module"),
        ("def make():\n    return None\n", "net.py:make", "returned a NoneType"),
        ("def make(width):\n    return width\n", "net.py:make", "missing 1 required positional"),
        ("make = 5\n", "net.py:make", "is a int; expected a function"),
        ("def other():\n    pass\n", "net.py:make", "has no 'make'; it defines: other"),
        ("import nowhere_to_be_found\n", "net.py:make", "nowhere_to_be_found"),
        ("def broken(:\n", "net.py:make", "SyntaxError"),
        ("def make():\n    pass\n", "net.py", "names no object in the file"),
        ("from torch import nn\nmake = nn.ReLU\n", "net.py:make", "without parameters"),
        ("from torch import nn\ndef make():\n    return nn.LazyLinear(3)\n", "net.py:make",
         "'weight' has no shape yet"),
    ],
)  # fmt: skip
def test_a_factory_that_fails_says_why_and_where(
    tmp_path: Path, text: str, spec: str, message: str
) -> None:
    write(tmp_path, text)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"{tmp_path}/{spec}")
    assert "net.py" in str(caught.value)


def test_no_such_file_or_module() -> None:
    with pytest.raises(ModelError, match=r"cannot read nowhere\.py"):
        load_model("nowhere.py:make")
    with pytest.raises(ModelError, match="cannot import 'nowhere_at_all'"):
        load_model("nowhere_at_all:make")


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    for width in (2, 30):
        write(tmp_path, f"from torch import nn\ndef make():\n    return nn.Linear(1, {width})\n")
        assert load_model(f"{tmp_path}/net.py:make").model.out_features == width


def test_a_module_object_is_copied(tmp_path: Path) -> None:
    write(tmp_path, "from torch import nn\nnet = nn.Linear(2, 2)\n")
    first = load_model(f"{tmp_path}/net.py:net")
    with torch.no_grad():
        first.model.weight.zero_()
    assert load_model(f"{tmp_path}/net.py:net").digest == first.digest


# ---------------------------------------------------------------- weights


Wrap = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 7},
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "best_prec1": 91.0},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
@pytest.mark.parametrize("ending", ["th", "pt", "pth"])
def test_wrapped_weights_fit(tmp_path: Path, wrap: Wrap, ending: str) -> None:
    reference = load_model("resnet8-digits", seed=5)
    path = tmp_path / f"weights.{ending}"
    torch.save(wrap(reference.model.state_dict()), path)
    loaded = load_model("resnet8-digits", str(path))
    assert loaded.digest == reference.digest
    assert loaded.trained
    assert not reference.trained


def test_safetensors_round_trip(tmp_path: Path) -> None:
    reference = load_model("resnet8-digits", seed=5)
    save_file(reference.model.state_dict(), tmp_path / "w.safetensors")
    assert load_model("resnet8-digits", tmp_path / "w.safetensors").digest == reference.digest


class Payload:
    """Unpickling it creates a file: what a hostile weights file would do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "torch-old", "pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path, writer: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    body = {"state_dict": {"conv1.weight": Payload(marker)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(body, protocol=2))
    else:
        torch.save(body, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ModelError, match="refused and nothing in it was run") as caught:
        load_model("resnet8-digits", path)
    assert not marker.exists()
    assert "mkdir" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to load it unsafely
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload does work


def test_weights_that_do_not_fit_name_the_tensors(tmp_path: Path) -> None:
    state = load_model("resnet8-digits").model.state_dict()
    state["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    state["extra.bias"] = torch.zeros(1)
    del state["linear.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model("resnet8-digits", tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "1 missing in the file: linear.bias" in message
    assert "1 unknown to the model: extra.bias" in message
    assert "conv1.weight (file [16, 3, 3, 3], model [32, 1, 3, 3])" in message


def test_only_ten_names_are_listed(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"37 missing in the file: .* and 27 more"):
        load_model("resnet8-digits", tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(tmp_path: Path, value: float) -> None:
    state = load_model("resnet8-digits").model.state_dict()
    state["layer2.0.bn1.running_var"][3] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"'layer2\.0\.bn1\.running_var' holds 1 of 64 values"):
        load_model("resnet8-digits", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"not a tensor file at all", "damaged or not safetensors"),
        ("w.pth", b"", "damaged"),
        ("w.pth", b"hello, this is text", "damaged"),
        ("w.pth", b"PK\x03\x04 truncated", "damaged"),
        ("w.npz", b"", "ending '.npz'"),
    ],
)
def test_damaged_or_foreign_weights(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model("resnet8-digits", tmp_path / name)


def test_missing_and_empty_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file"):
        load_model("resnet8-digits", tmp_path / "none.pth")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds no tensors \(found: epoch, lr\)"):
        load_model("resnet8-digits", tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ModelError, match="holds a list"):
        load_model("resnet8-digits", tmp_path / "w.pth")


def test_digest_sees_values_and_names_not_order() -> None:
    model = nn.Linear(2, 2)
    before = state_digest(model)
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert state_digest(model) != before
    assert state_digest(model.to(torch.bfloat16)) != before


# ---------------------------------------------------------------- published weights


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20-cifar10", "resnet20-12fca82f.th"),
        ("resnet56-cifar10", "resnet56-4bfd9763.th"),
        ("resnet56-cifar10", "resnet56-cifar10-jpeg.safetensors"),
    ],
)
def test_published_weights_fit(shared_data: Path, name: str, file: str) -> None:
    assert load_model(name, shared_data / "weights" / file).trained
    wrong = "resnet20-cifar10" if "56" in name else "resnet56-cifar10"
    with pytest.raises(ModelError, match=r"does not fit the model: \d+ .*layer1\.3\.bn1"):
        load_model(wrong, shared_data / "weights" / file)
