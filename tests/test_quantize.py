"""From a float32 file to one of lower precision that holds its promise, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import quant_nets as qn

from mint_deploy import files
from mint_deploy.errors import ConfigError, DataError, ModelError, UnknownName
from mint_deploy.quantize import SCHEMES, Quantized, quantize_file, scheme_for
from mint_deploy.quantize import convert as convert_module
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.source import read_source
from mint_deploy.target import Target, load_target, target_names


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return qn.train_on_digits(tmp_path_factory.mktemp("digits"))


def scorer(digits: dict[str, Any], count: int | None = None):
    x, y = digits["x"][:count], digits["y"][:count]

    def right(infer) -> np.ndarray:
        return infer({"input": x})["output"].argmax(1) == y

    right.measure = "top1"  # type: ignore[attr-defined]  # a function may carry its name
    return right


def converted(digits: dict[str, Any], out: Path, **how: Any) -> Quantized:
    settings = {"evaluate": scorer(digits), **how}
    path = settings.pop("path", digits["path"])
    return quantize_file(path, digits["calibrate"], out=out / "made.onnx", **settings)


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_int8_keeps_the_accuracy_within_a_point(
    scheme: str, digits: dict[str, Any], tmp_path: Path
) -> None:
    made = converted(digits, tmp_path, scheme=scheme, max_drop=1.0)
    assert made.before is not None
    assert made.after is not None
    assert made.before.top1 > 0.9, "the network has not learnt its digits"
    assert made.after.drop <= 1.0
    assert made.kept is True
    assert made.scheme == scheme
    assert (made.before.measure, made.before.samples) == ("top1", 797)
    assert made.snr_db["output"] > 20
    assert made.batches == (1, 2, 8)
    # what is told is what the file computes
    infer = Network(made.path).infer
    assert scorer(digits)(infer).mean() == pytest.approx(made.after.top1)


def test_fp16_is_nearly_exact(digits: dict[str, Any], tmp_path: Path) -> None:
    made = converted(digits, tmp_path, precision="fp16")
    assert abs(made.after.drop) <= 0.5
    assert made.snr_db["output"] > 50
    assert (made.scheme, made.float_layers, made.float_macs) == ("float16", (), 0.0)
    assert made.settings["borders"] == "float32"


def test_it_is_smaller(digits: dict[str, Any], tmp_path: Path) -> None:
    made = converted(digits, tmp_path, max_drop=None)
    assert made.bytes == Path(made.path).stat().st_size
    assert made.source_bytes == digits["path"].stat().st_size
    wide = qn.residual(tmp_path / "wide.onnx", width=48)
    small = quantize_file(wide, qn.images(16), max_drop=None)
    assert small.bytes < 0.35 * small.source_bytes


# ---------------------------------------------------------------- sensitive layers


@pytest.fixture(scope="module")
def outlier(digits: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network with one channel between conv1 and conv2 that swallows the range of the others."""
    return qn.with_outlier(digits["path"], tmp_path_factory.mktemp("outlier") / "net.onnx")


@pytest.mark.parametrize("scheme", ["symmetric", "u8s8-reduced"])
def test_the_planted_layer_and_no_other_stays_float(
    scheme: str, outlier: Path, digits: dict[str, Any], tmp_path: Path
) -> None:
    lost = converted(digits, tmp_path, path=outlier, scheme=scheme, max_drop=None)
    assert lost.after.drop > 5, "the plant does no harm, the test shows nothing"
    made = converted(digits, tmp_path, path=outlier, scheme=scheme, max_drop=1.0)
    convs = [n.name for n in onnx.load(outlier).graph.node if n.op_type == "Conv"]
    # Q/DQ at inputs: the second layer reads the bad tensor; around every layer: the first writes it as well
    expected = {convs[1]} if scheme == "symmetric" else set(convs[:2])
    assert {layer.name for layer in made.float_layers} == expected
    assert made.kept is True
    assert made.after.drop <= 1.0
    worst = sorted(made.damage, key=lambda name: made.damage[name])[: len(expected)]
    assert set(worst) == expected
    for layer in made.float_layers:
        assert layer.snr_db == made.damage[layer.name] < 15
        assert "by damage" in layer.reason
    macs = read_source(outlier).macs
    share = sum(macs[name] for name in expected) / sum(macs.values())
    assert made.float_macs == pytest.approx(share)


def test_no_layer_is_ranked_where_all_hold(digits: dict[str, Any], tmp_path: Path) -> None:
    made = converted(digits, tmp_path, max_drop=100.0)
    assert (made.evaluations, made.damage, made.float_layers) == (1, {}, ())


def test_it_stops_as_soon_as_the_limit_holds(
    outlier: Path, digits: dict[str, Any], tmp_path: Path
) -> None:
    made = converted(digits, tmp_path, path=outlier, scheme="symmetric", max_drop=1.0)
    # all converted, then one layer in float32: it holds, and fewer is none
    assert made.evaluations == 2
    assert len(made.damage) == 4, "every layer with weights was ranked"


def test_a_promise_that_cannot_be_held_is_a_verdict_and_the_file_is_kept(
    outlier: Path, digits: dict[str, Any], tmp_path: Path
) -> None:
    answers = iter([np.ones(50)])  # whatever is done to the network, everything is lost

    def evaluate(infer) -> np.ndarray:
        return next(answers, np.zeros(50))

    made = converted(digits, tmp_path, path=outlier, evaluate=evaluate, max_drop=0.5)
    assert made.kept is False
    assert made.verdict.startswith("broken: score on 50 held-out samples dropped by 100.00 points")
    assert "--precision fp16" in made.verdict
    assert Path(made.path).is_file()
    assert made.float_macs <= 0.5


def test_layers_asked_for_stay_float_before_any_search(
    digits: dict[str, Any], tmp_path: Path
) -> None:
    name = onnx.load(digits["path"]).graph.node[0].name
    made = converted(digits, tmp_path, keep_float=[name], max_drop=5.0)
    assert [(f.name, f.operator, f.reason) for f in made.float_layers] == [
        (name, "Conv", "asked for")
    ]
    with pytest.raises(UnknownName, match="no layer named 'conv9'"):
        converted(digits, tmp_path, keep_float=["conv9"])


def test_layers_that_overflow_float16_stay_float32(tmp_path: Path) -> None:
    path = qn.with_outlier(qn.residual(tmp_path / "net.onnx"), tmp_path / "large.onnx", scale=1e6)
    made = quantize_file(path, qn.images(20), precision="fp16", max_drop=None)
    assert "stem" in {layer.name for layer in made.float_layers}
    assert all("65504" in layer.reason for layer in made.float_layers)
    assert made.snr_db["output"] > 40


# ---------------------------------------------------------------- without labels


def test_agreement_judges_where_nothing_else_does(digits: dict[str, Any], tmp_path: Path) -> None:
    made = converted(digits, tmp_path, evaluate=None, held_out=digits["x"], max_drop=2.0)
    assert (made.before.measure, made.before.top1, made.before.samples) == ("agreement", 1.0, 797)
    assert made.kept is True
    assert not made.doubts
    flattered = converted(digits, tmp_path, evaluate=None, max_drop=2.0)
    assert flattered.before.samples == 200
    assert any("held_out" in doubt for doubt in flattered.doubts)


def test_outputs_that_are_no_scores_are_converted_and_not_judged(tmp_path: Path) -> None:
    nodes: list[qn.Node] = [("Conv", ["input", "w"], "output", {"pads": [1, 1, 1, 1]})]
    weights = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)}
    path = qn.save(tmp_path / "maps.onnx", nodes, weights, [3, 8, 8])
    made = quantize_file(path, qn.images(20))
    assert (made.kept, made.before, made.after) == (None, None, None)
    assert "give evaluate" in made.verdict
    assert made.snr_db["output"] > 30


def test_a_file_with_a_fixed_batch(tmp_path: Path) -> None:
    path = qn.residual(tmp_path / "net.onnx", batch=3)
    made = quantize_file(path, qn.images(20), max_drop=None)
    assert made.batches == (3,)
    assert Network(made.path).batch == 3


# ---------------------------------------------------------------- the file and the record


def test_the_record_travels_in_the_file(digits: dict[str, Any], tmp_path: Path) -> None:
    made = converted(digits, tmp_path, scheme="symmetric", max_drop=None)
    notes = {p.key: p.value for p in onnx.load(made.path).metadata_props}
    assert notes["mint_deploy.precision"] == "int8"
    about = json.loads(notes["mint_deploy.quantization"])
    assert about["scheme"] == "symmetric"
    assert about["calibration"] == "minmax"
    assert about["samples"] == 200
    assert about["source_sha256"] == files.sha256(digits["path"]) == made.source_sha256
    assert notes["mint_deploy.mean"] == "[0.5]", "the notes of the float32 file stay"
    assert made.sha256 == files.sha256(made.path)


def test_the_value_is_a_file(digits: dict[str, Any], outlier: Path, tmp_path: Path) -> None:
    made = converted(digits, tmp_path, path=outlier, scheme="symmetric")
    files.write_value(tmp_path / "made.json", made)
    assert files.read_value(tmp_path / "made.json", Quantized) == made


def test_equal_input_gives_equal_bytes(digits: dict[str, Any], tmp_path: Path) -> None:
    for precision in ("int8", "fp16"):
        first = converted(digits, tmp_path / "a", precision=precision)
        second = converted(digits, tmp_path / "b", precision=precision)
        assert first.sha256 == second.sha256
        assert first.snr_db == second.snr_db


def test_the_default_name_stands_beside_the_source(tmp_path: Path) -> None:
    path = qn.residual(tmp_path / "net.v2.onnx")
    made = quantize_file(path, qn.images(16), max_drop=None)
    assert made.path == str(tmp_path / "net.v2.int8.onnx")
    with pytest.raises(ConfigError, match="is the float32 file itself"):
        quantize_file(path, qn.images(16), out=path)


def test_a_calibration_is_made_once(
    digits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = convert_module.calibrate

    def counted(*given, **how):
        made.append(how["method"])
        return real(*given, **how)

    monkeypatch.setattr(convert_module, "calibrate", counted)
    cache = tmp_path / "calibration.json"
    first = converted(digits, tmp_path, cache=cache, max_drop=None)
    again = converted(digits, tmp_path, cache=cache, max_drop=None)
    assert (made, first.sha256) == (["minmax"], again.sha256)
    converted(digits, tmp_path, cache=cache, max_drop=None, scheme="s8s8")
    assert made == ["minmax"], "the ranges of s8s8 are those of u8s8"
    converted(digits, tmp_path, cache=cache, max_drop=None, calibration="percentile")
    converted(digits, tmp_path, cache=cache, max_drop=None, scheme="symmetric")
    assert made == ["minmax", "percentile", "minmax"]
    other = dict(digits, calibrate=digits["calibrate"][:150])
    converted(other, tmp_path, cache=cache, max_drop=None)
    assert len(made) == 4, "other samples have other ranges"


def test_stopping_leaves_nothing_and_going_on_gives_the_same(
    digits: dict[str, Any], tmp_path: Path
) -> None:
    whole = converted(digits, tmp_path / "whole")

    def stop(done: float, total: float, note: str) -> None:
        if note.startswith("judging"):
            raise KeyboardInterrupt

    cache = tmp_path / "calibration.json"
    with pytest.raises(KeyboardInterrupt):
        converted(digits, tmp_path / "part", cache=cache, progress=stop)
    assert not (tmp_path / "part").exists() or not list((tmp_path / "part").iterdir())
    assert cache.is_file()
    assert converted(digits, tmp_path / "part", cache=cache).sha256 == whole.sha256


# ---------------------------------------------------------------- doubts and errors


def test_few_samples_are_doubted_and_too_few_refused(tmp_path: Path) -> None:
    path = qn.residual(tmp_path / "net.onnx")
    made = quantize_file(path, qn.images(20), max_drop=None)
    assert any("20 calibration samples" in doubt for doubt in made.doubts)
    enough = quantize_file(path, qn.images(100), max_drop=None)
    assert not any("100 calibration samples" in doubt for doubt in enough.doubts)
    with pytest.raises(DataError, match="too few; expected at least 8"):
        quantize_file(path, qn.images(7))


def test_kernels_that_overflow_here_are_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(network: Network, expected, samples):
        return ({"output": 18.0 if network.as_runtime else 30.0}, (1,))

    monkeypatch.setattr(convert_module, "batches_of", noisy)
    made = quantize_file(qn.residual(tmp_path / "net.onnx"), qn.images(100), max_drop=None)
    assert any("reach 18.0 dB where the file's arithmetic has 30.0" in d for d in made.doubts)


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"precision": "int4"}, UnknownName, "no precision named 'int4'"),
        ({"scheme": "u8u8"}, UnknownName, "did you mean 'u8s8'"),
        ({"calibration": "max"}, UnknownName, "calibration method named 'max'"),
        ({"target": "jetsen"}, UnknownName, "did you mean 'jetson'"),
        ({"max_drop": -0.1}, ConfigError, "-0.1 points; expected 0 to 100"),
    ],
)
def test_settings_that_make_no_sense(how, error, said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        quantize_file(qn.residual(tmp_path / "net.onnx"), qn.images(16), **how)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        quantize_file(tmp_path / "absent.onnx", qn.images(16))


# ---------------------------------------------------------------- what a target gets


@pytest.mark.parametrize("name", target_names())
def test_every_target_has_its_scheme(name: str) -> None:
    target = load_target(name)
    found = scheme_for(target).name
    if target.family in ("jetson", "gpu"):
        assert found == "symmetric"
    elif target.family == "arm-cpu":
        assert found == "s8s8"
    else:
        assert found.startswith("u8s8")


@pytest.mark.parametrize(
    ("isa", "scheme"),
    [
        (None, "u8s8-reduced"),
        ("avx2", "u8s8-reduced"),
        ("avx512", "u8s8-reduced"),
        ("avx512-vnni", "u8s8"),
        ("AVX_VNNI", "u8s8"),
        ("amx-int8", "u8s8"),
    ],
)
def test_x86_has_eight_bits_where_its_products_do_not_overflow(
    isa: str | None, scheme: str
) -> None:
    assert scheme_for(Target(name="t", family="cpu", cpu_isa=isa)).name == scheme


def test_tensorrt_is_symmetric_whatever_the_family() -> None:
    assert scheme_for(Target(name="t", family="cpu", runtime="tensorrt")).name == "symmetric"
