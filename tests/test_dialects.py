"""The dialects: every flag we give is one that the release parses, and a figure means the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtexec_double import VERSIONS, effective, flags, shapes_of, transcript

from mint_deploy._trt_dialects import DIALECTS, MEANING, dialect_of, has_dla, version_of
from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ConfigError, ModelError
from mint_deploy.recipe import (
    BuildSettings,
    build_arguments,
    build_settings,
    measure_arguments,
    workspace_mib,
)

FIXED = (TensorSpec(name="input", shape=(1, 3, 32, 32)),)
OPEN = (TensorSpec(name="input", shape=(-1, 3, 32, 32)),)


def names(arguments):
    return {a.partition("=")[0] for a in arguments}


def all_settings(version):
    """Every combination that this release allows."""
    for precision, holds, core, inputs, typing in itertools.product(
        ("fp32", "fp16", "int8"), ((), ("fp16",), ("int8",), ("fp16", "int8")), (None, 1),
        (FIXED, OPEN), (None, "weak", "strong"),
    ):  # fmt: skip
        target = {
            "precision": precision,
            "dla_core": core,
            "typing": typing,
            "memory_bytes": 4 << 30,
        }
        try:
            yield build_settings(version, target, inputs, holds)
        except ConfigError:
            continue


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("version", VERSIONS)
def test_no_release_gets_a_flag_that_it_does_not_parse(version):
    count = 0
    for settings in all_settings(version):
        build = build_arguments(version, settings, "m.onnx", "m.plan", "t", layers="l.json")
        assert names(build) <= flags(version), settings
        measure = measure_arguments(
            version, "m.plan", "t.json", profile="p.json", shapes={"input": (1, 3, 32, 32)},
            dla_core=settings.dla_core,
        )  # fmt: skip
        assert names(measure) <= flags(version)
        assert len(names(build)) == len(build), "a flag given twice"
        count += 1
    assert count >= 8


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("core", [None, 0])
def test_a_figure_means_the_same_under_every_release(version, transfers, core):
    """The double knows the defaults of each release; what comes out must not depend on them."""
    given = measure_arguments(
        version, "m.plan", "t.json", transfers=transfers, dla_core=core, streams=2
    )
    options = dict(a.partition("=")[::2] for a in given)
    assert effective(version, options) == {
        "Iterations": "662",
        "Duration": "10",
        "Warm up": "500",
        "Inference Streams": "2",
        "Data transfers": "Enabled" if transfers else "Disabled",
        "Spin-wait": "Enabled",
        "CUDA Graph": "Enabled" if core is None else "Disabled",
        "Separate profiling": "Enabled",
    }


def test_without_our_flags_the_releases_would_not_measure_the_same():
    """The trap that the table is for: 11 turned the defaults round."""
    bare = {version: effective(version, {}) for version in VERSIONS}
    assert bare["8.5"] == bare["8.6"] == bare["10.3"]
    for name in ("Data transfers", "Spin-wait", "CUDA Graph", "Separate profiling"):
        assert bare["10.3"][name] != bare["11.1"][name]


def test_the_meaning_is_written_down():
    assert MEANING == {
        "transfers": False, "cuda_graph": True, "spin_wait": True, "separate_profile_run": True,
    }  # fmt: skip
    for dialect in DIALECTS:
        assert set(dialect.measuring) == set(MEANING)


def test_flags_that_a_real_board_refused_are_not_ours():
    """What trtexec 10.3 of a Jetson said to the options of 8.x."""
    refused = {line.split()[4] for line in transcript("log-10.3-unknown-option.txt").splitlines()
               if "Unknown option" in line}  # fmt: skip
    assert refused == {"--workspace", "--buildOnly", "--explicitBatch"}
    assert not refused & flags("10.3")
    assert "--buildOnly" in flags("8.5")


# ---------------------------------------------------------------- versions


def test_versions_find_their_dialect():
    found = {v: dialect_of(v).name for v in ("8.5.2", "8.6.2", "10.3", "10.13.3", "11.4.1")}
    assert found == {"8.5.2": "8.5", "8.6.2": "8.6", "10.3": "10", "10.13.3": "10", "11.4.1": "11"}


@pytest.mark.parametrize("version", ["8.2.1", "9.0", "12.0", "ten", ""])
def test_versions_that_nobody_knows_are_refused(version):
    with pytest.raises(ConfigError, match="TensorRT"):
        dialect_of(version)


@given(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)))
def test_a_version_is_read_as_it_is_written(number):
    assert version_of(".".join(map(str, number))) == number
    assert version_of(f"{number[0]}.{number[1]}") == (*number[:2], 0)


@pytest.mark.parametrize(
    ("version", "there"),
    [("8.5.2", True), ("8.6.2", True), ("10.3", True), ("10.7", True), ("10.8", False),
     ("10.13.3", False), ("11.0", False), ("11.3.0", False), ("11.4", False), ("11.4.1", True)],
)  # fmt: skip
def test_the_accelerator_came_and_went(version, there):
    assert has_dla(version) == there
    target = {"precision": "fp16", "dla_core": 0}
    if there:
        settings = build_settings(version, target, FIXED, ("fp16",))
        build = build_arguments(version, settings, "m", "p", "t")
        assert {"--useDLACore=0", "--allowGPUFallback"} <= set(build)
    else:
        with pytest.raises(ConfigError, match="does not drive the Deep Learning Accelerator"):
            build_settings(version, target, FIXED, ("fp16",))


# ---------------------------------------------------------------- precision and typing


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.3"])
def test_up_to_ten_the_precision_is_a_flag(version):
    def given(precision, *holds):
        settings = build_settings(version, {"precision": precision}, FIXED, holds)
        assert settings.typing == "weak"
        return names(build_arguments(version, settings, "m", "p", "t")) & {"--fp16", "--int8"}

    assert given("fp32") == set()
    assert given("fp16") == {"--fp16"}
    # what is not quantised runs in FP16: else the rest would be slower than without INT8
    assert given("int8", "int8") == {"--int8", "--fp16"}


@pytest.mark.parametrize("version", VERSIONS)
def test_tf32_is_off_everywhere(version):
    """FP32 means FP32: a GPU since Ampere would round to ten bits otherwise."""
    for settings in all_settings(version):
        assert "--noTF32" in build_arguments(version, settings, "m", "p", "t")


def test_from_ten_on_a_typed_file_is_taken_at_its_word():
    typed = build_settings("10.3", {"precision": "fp16"}, FIXED, ("fp16",))
    assert typed.typing == "strong"
    given = build_arguments("10.3", typed, "m", "p", "t")
    assert "--stronglyTyped" in given
    assert "--fp16" not in given
    eleven = build_settings("11.1", {"precision": "fp16"}, FIXED, ("fp16",))
    assert eleven.typing == "strong"
    # 11 accepts the flag and warns that it is deprecated: there is nothing else it could do
    assert not names(build_arguments("11.1", eleven, "m", "p", "t")) & {"--stronglyTyped", "--fp16"}
    weak = build_settings("10.3", {"precision": "fp16", "typing": "weak"}, FIXED, ("fp16",))
    assert "--fp16" in build_arguments("10.3", weak, "m", "p", "t")


def test_precisions_that_nobody_can_bring_about():
    for version in ("8.5", "10.3", "11.1"):
        with pytest.raises(ConfigError, match="needs an ONNX file with quantisation nodes"):
            build_settings(version, {"precision": "int8"}, FIXED)
        with pytest.raises(ConfigError, match="precision fp8 is not known"):
            build_settings(version, {"precision": "fp8"}, FIXED)
    with pytest.raises(ConfigError, match=r"11\.1 takes the precision from the ONNX file"):
        build_settings("11.1", {"precision": "fp16"}, FIXED)
    with pytest.raises(ConfigError, match="has no strong typing"):
        build_settings("8.6", {"typing": "strong"}, FIXED)
    with pytest.raises(ConfigError, match="has no weak typing"):
        build_settings("11.1", {"typing": "weak"}, FIXED)
    with pytest.raises(ConfigError, match="typing is 'medium'"):
        build_settings("10.3", {"typing": "medium"}, FIXED)
    with pytest.raises(ConfigError, match="takes the precision from the ONNX file"):
        build_arguments("11.1", BuildSettings(typing="weak"), "m", "p", "t")
    with pytest.raises(ConfigError, match="has no strong typing"):
        build_arguments("8.5", BuildSettings(typing="strong"), "m", "p", "t")


# ---------------------------------------------------------------- shapes and memory


def test_an_open_batch_gets_a_profile_and_a_fixed_one_none():
    """trtexec refuses shapes for a static model, and sets an open one to 1 where none is given."""
    fixed = build_settings("10.3", {"batch": 1}, FIXED)
    assert not any("Shapes" in a for a in build_arguments("10.3", fixed, "m", "p", "t"))
    one = build_settings("10.3", {"batch": 4}, OPEN)
    assert one.profile == {"input": ((4, 3, 32, 32),) * 3}
    some = build_settings("10.3", {"batch": 4, "max_batch": 16}, OPEN)
    given = build_arguments("10.3", some, "m", "p", "t")
    assert [a for a in given if "Shapes" in a] == [
        "--minShapes=input:1x3x32x32", "--optShapes=input:4x3x32x32", "--maxShapes=input:16x3x32x32",
    ]  # fmt: skip


@given(
    st.dictionaries(
        st.text("abc.:/_0", min_size=1, max_size=9), st.lists(st.integers(1, 99), max_size=3),
        min_size=1, max_size=3,
    ),
    st.integers(1, 9),
    st.integers(1, 99),
)  # fmt: skip
def test_shapes_are_read_as_they_were_meant(inner, batch, largest):
    """A colon may stand in a name: trtexec splits at the last one."""
    specs = [TensorSpec(name=name, shape=(-1, *rest)) for name, rest in inner.items()]
    settings = build_settings("10.3", {"batch": batch, "max_batch": largest}, specs)
    given = dict(a.partition("=")[::2] for a in build_arguments("10.3", settings, "m", "p", "t"))
    low, usual, high = (shapes_of(given[f"--{end}Shapes"]) for end in ("min", "opt", "max"))
    for name, rest in inner.items():
        assert low[name][1:] == usual[name][1:] == high[name][1:] == tuple(rest)
        assert 1 <= low[name][0] <= usual[name][0] == batch <= high[name][0]


def test_shapes_that_an_engine_does_not_take():
    with pytest.raises(ModelError, match=r"input 'x' \[1, 3, -1, 32\] leaves dimension 2 open"):
        build_settings("10.3", {}, [TensorSpec(name="x", shape=(1, 3, -1, 32))])
    with pytest.raises(ModelError, match="comma or a quotation mark"):
        build_settings("10.3", {}, [TensorSpec(name="a,b", shape=(-1, 3))])
    with pytest.raises(ConfigError, match=r"wants fixed shapes, and input 'input' .* from 1 to 8"):
        build_settings("10.3", {"precision": "fp16", "dla_core": 0, "max_batch": 8}, OPEN)
    with pytest.raises(ConfigError, match="computes in fp16 and int8"):
        build_settings("10.3", {"precision": "fp32", "dla_core": 0}, FIXED)
    assert (
        build_settings("10.3", {"precision": "fp16", "dla_core": 0, "batch": 8}, OPEN).dla_core == 0
    )


@given(st.integers(1, 1 << 40))
def test_a_small_board_gives_less_scratch_memory(memory):
    given = workspace_mib(memory)
    assert given is not None
    assert 64 <= given <= 4096
    assert given == 64 or given << 20 <= memory // 4
    assert workspace_mib(None) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_scratch_memory_is_a_number_without_a_unit(version):
    """8.5 reads it as MiB and knows no unit; 10 takes a bare number for MiB."""
    settings = build_settings(version, {"memory_bytes": 4 << 30}, FIXED)
    given = build_arguments(version, settings, "m", "p", "t")
    assert "--memPoolSize=workspace:1024" in given
    told = build_settings(version, {"memory_bytes": 4 << 30, "workspace_mib": 256}, FIXED)
    assert "--memPoolSize=workspace:256" in build_arguments(version, told, "m", "p", "t")
    none = build_settings(version, {}, FIXED)
    assert not any("memPoolSize" in a for a in build_arguments(version, none, "m", "p", "t"))
