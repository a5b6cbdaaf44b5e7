"""Targets: the shipped files hold together, users' files get clear answers, writing round-trips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_deploy import files
from mint_deploy.errors import TargetError, UnknownName
from mint_deploy.target import (
    FAMILIES,
    MODE_FIELDS,
    PRECISIONS,
    PROMISES,
    SCENARIOS,
    TYPINGS,
    Target,
    load_target,
    target_names,
    to_toml,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TARGETS = Path(__file__).parents[1] / "targets"
BOARDS = [
    "jetson-agx-orin-64gb",
    "jetson-orin-nano-4gb",
    "jetson-orin-nano-8gb",
    "jetson-orin-nx-16gb",
    "jetson-thor-t5000",
]
#: numbers that are a choice of how to run, not a fact that needs a source
CHOICES = {"batch", "threads"}
#: what is said to TensorRT's builder
BUILD = {"max_batch", "dla_core", "workspace_mib", "typing", "builds"}


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- what ships


def test_the_promised_targets_ship():
    assert {"cpu", "cpu-avx2", "cpu-avx512", "gpu", "jetson", "arm-cpu", *BOARDS} == set(
        target_names()
    )


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_target_loads_in_every_power_mode(name):
    target = load_target(name)
    assert target.name == name
    assert target.family in FAMILIES
    for mode in target.power_modes:
        assert load_target(name, power_mode=mode).power_mode == mode


@pytest.mark.parametrize("path", sorted(TARGETS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_number_in_a_shipped_file_has_a_source(path):
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = data.get("sources", {})
    plain = {k for k, v in data.items() if isinstance(v, (int, float)) and k not in CHOICES}
    assert plain <= set(sources)
    for mode, table in data.get("power_modes", {}).items():
        for key in table:
            named = f"power_modes.{mode}" in sources or f"power_modes.{mode}.{key}" in sources
            assert named, f"{path.name}: {mode}.{key} has no source"


@pytest.mark.parametrize("name", BOARDS)
def test_every_hardware_fact_of_a_board_has_a_source_in_every_mode(name):
    for mode in load_target(name).power_modes:
        target = load_target(name, power_mode=mode)
        for key in ("memory_bytes", "sm", "jetpack", "tensorrt", *MODE_FIELDS):
            if getattr(target, key) is not None:
                assert target.source(key), f"{name} in {mode}: {key}"


@pytest.mark.parametrize("name", [b for b in BOARDS if "orin" in b])
def test_figures_of_the_orin_boards_agree_with_cores_times_clock(name):
    """One tensor core of Orin does 512 FP16 or 1024 INT8 operations per clock."""
    checked = 0
    for mode in load_target(name).power_modes:
        t = load_target(name, power_mode=mode)
        if t.tensor_cores is None:
            assert t.gpu_mhz is None
            assert t.fp16_tflops is None
            continue
        per_clock = t.tensor_cores * t.gpu_mhz * 1e6 / 1e12
        assert t.fp16_tflops == pytest.approx(512 * per_clock, rel=0.03)
        assert t.int8_tops == pytest.approx(1024 * per_clock, rel=0.03)
        assert t.cuda_cores == 32 * t.tensor_cores
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", target_names())
def test_widths_and_opsets_fit_the_runtime(name):
    target = load_target(name)
    if target.precision == "fp16":
        assert target.round_to % 8 == 0
    if target.runtime == "tensorrt":
        assert 17 <= target.opset <= 20
        assert target.ir_version <= 10


def test_jetson_is_the_orin_nano_8gb_under_its_own_name():
    jetson, board = load_target("jetson"), load_target("jetson-orin-nano-8gb")
    assert jetson.name == "jetson"
    assert files.encode(jetson) | {"name": board.name} == files.encode(board)


def test_cpu_takes_the_widths_that_are_good_on_both_instruction_sets():
    assert load_target("cpu").round_to == 16
    assert load_target("cpu-avx512").round_to == 16
    assert load_target("cpu-avx2").round_to == 8


def test_a_power_mode_changes_the_figures_and_their_source():
    slow = load_target("jetson", power_mode="7W")
    fast = load_target("jetson", power_mode="MAXN_SUPER")
    assert (slow.gpu_mhz, fast.gpu_mhz) == (408, 1020)
    assert slow.fp16_tflops < fast.fp16_tflops
    assert slow.source("gpu_mhz") != fast.source("gpu_mhz")
    assert slow.source("memory_gb_per_s") != slow.source("gpu_mhz")


def test_a_mode_without_figures_has_none_and_does_not_keep_those_of_another():
    thor = load_target("jetson-thor-t5000")
    unknown = load_target("jetson-thor-t5000", power_mode="70W")
    assert thor.fp16_tflops == 258
    assert unknown.fp16_tflops is None
    assert unknown.memory_gb_per_s == thor.memory_gb_per_s


# ---------------------------------------------------------------- users' files


def test_a_users_file_extends_a_shipped_target(tmp_path):
    path = write(tmp_path, 'extends = "jetson"\nbatch = 4\n[promises]\nmax_accuracy_drop = 0.5\n')
    mine = load_target(path)
    assert (mine.name, mine.batch, mine.runtime) == ("mine", 4, "tensorrt")
    assert mine.promises == {"max_accuracy_drop": 0.5}
    assert load_target(str(path), power_mode="25W").gpu_mhz == 918


def test_a_users_file_extends_a_neighbour_and_changes_one_figure_of_a_mode(tmp_path):
    write(tmp_path, 'extends = "jetson"\nname = "base"\nthreads = 2\n', "base.toml")
    path = write(
        tmp_path,
        'extends = "base.toml"\npower_mode = "7W"\n[power_modes.7W]\ngpu_mhz = 420\n',
    )
    mine = load_target(path)
    assert (mine.name, mine.threads, mine.gpu_mhz, mine.cuda_cores) == ("mine", 2, 420, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch = 0", "max_batch is 0; expected a whole number from 1 to 65536"),
        (
            "batch = 4\nmax_batch = 3",
            "max_batch is 3, below batch 4, which the engine is tuned for",
        ),
        ("dla_core = 0", "dla_core is 0, and the device has none (dla_cores); leave dla_core out"),
        ("dla_core = -1", "dla_core is -1; expected a whole number from 0"),
        ("dla_core = 'first'", "dla_core is 'first'; expected a whole number"),
        ("workspace_mib = 0", "workspace_mib is 0; expected a whole number from 1"),
        ("workspace_mib = 8193", "workspace_mib is 8193, and the device has 8192 MiB in all"),
        ("typing = 'strongly'", "typing is 'strongly'; did you mean 'strong'? known: weak, strong"),
        ("typing = true", "typing is True; expected a text"),
        ("builds = 0", "builds is 0; expected a whole number from 1 to 1000"),
        ("buids = 3", "unknown key 'buids'; did you mean 'builds'?"),
        ("rond_to = 8", "unknown key 'rond_to'; did you mean 'round_to'? known: "),
        ("round_to = 'eight'", "round_to is 'eight'; expected a whole number from 1 to 1024"),
        ("round_to = 0", "round_to is 0; expected a whole number"),
        ("batch = true", "batch is True; expected a whole number"),
        ("batch = 1.5", "batch is 1.5; expected a whole number"),
        (f"batch = {10**400}", "expected a whole number"),
        ("opset = 9", "opset is 9; expected a whole number from 13"),
        ("opset = 23\nir_version = 10", "ir_version 10 cannot carry opset 23"),
        ("precision = 'fp61'", "precision is 'fp61'; did you mean 'fp16'? known: fp32, fp16, int8"),
        ("scenario = 'singlestream'", "did you mean 'single_stream'?"),
        ("family = 'jetsen'", "did you mean 'jetson'?"),
        ("runtime = ''", "runtime is empty"),
        ("runtime = 3", "runtime is 3; expected a text"),
        ("tensorrt = 'ten'", "tensorrt is 'ten'; expected a version"),
        ("gpu_mhz = 700", "gpu_mhz = 700 belongs to the power modes of this target; write it"),
        ("memory_bytes = -1", "memory_bytes is -1"),
        ("power_mode = '15w'", "has no power mode '15w'; did you mean '15W'? known: 7W, 15W"),
        ("power_mode = 15", "has no power mode '15'"),
        ("[power_modes.7W]\ngpu_mhz = nan", "power mode '7W': gpu_mhz is nan"),
        ("[power_modes.7W]\ngpu_mhz = inf", "gpu_mhz is inf"),
        ("[power_modes.7W]\ngpu_hz = 1", "unknown key 'gpu_hz'; did you mean 'gpu_mhz'?"),
        ("power_modes = 3", "power_modes is 3; expected a table"),
        ("[power_modes]\n7W = 3", "power_modes.7W is 3; expected a table"),
        ("[promises]\nmax_acuracy_drop = 1", "did you mean 'max_accuracy_drop'?"),
        ("[promises]\nspeedup = 'two'", "promise speedup is 'two'"),
        ("[promises]\nspeedup = -1", "promise speedup is -1"),
        ("[sources]\nround_too = 'me'", "unknown key 'round_too'; did you mean 'round_to'?"),
        ("[sources]\nround_to = ''", "the source of round_to is ''"),
        ("round_to = ", "is not valid TOML"),
    ],
)
def test_bad_values_are_refused_with_what_was_expected(tmp_path, text, message):
    path = write(tmp_path, f'extends = "jetson"\n{text}\n')
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert message in str(caught.value)


def test_what_tensorrt_builds_is_said_in_a_targets_file(tmp_path):
    text = """extends = "jetson-agx-orin-64gb"
batch = 4
max_batch = 32
dla_core = 1
workspace_mib = 512
typing = "weak"
builds = 3
"""
    mine = load_target(write(tmp_path, text))
    assert (mine.batch, mine.max_batch, mine.dla_core) == (4, 32, 1)
    assert (mine.workspace_mib, mine.typing, mine.builds) == (512, "weak", 3)
    child = load_target(write(tmp_path, 'extends = "mine.toml"\nbuilds = 1\n', "child.toml"))
    assert (child.builds, child.typing, child.max_batch) == (1, "weak", 32)


@pytest.mark.parametrize("name", target_names())
def test_what_nobody_says_about_a_build_is_not_set(name):
    target = load_target(name)
    assert all(getattr(target, key) is None for key in BUILD)
    assert not any(key in to_toml(target) for key in BUILD - {"dla_core"})


@given(
    batch=st.integers(1, 64),
    largest=st.none() | st.integers(1, 64),
    core=st.none() | st.integers(0, 4),
    cores=st.none() | st.integers(0, 4),
    scratch=st.none() | st.integers(1, 64),
    memory=st.none() | st.integers(1, 64 << 20),
)
def test_fields_that_bound_each_other(batch, largest, core, cores, scratch, memory):
    agree = (
        (largest is None or largest >= batch)
        and (core is None or cores is None or core < cores)
        and (scratch is None or memory is None or scratch * 2**20 <= memory)
    )
    given = {
        "batch": batch, "max_batch": largest, "dla_core": core, "dla_cores": cores,
        "workspace_mib": scratch, "memory_bytes": memory,
    }  # fmt: skip
    if agree:
        target = Target(name="x", family="jetson", **given)
        assert {key: getattr(target, key) for key in given} == given
    else:
        with pytest.raises(TargetError, match=r"max_batch is|dla_core is|workspace_mib is"):
            Target(name="x", family="jetson", **given)


def test_an_accelerator_that_the_device_may_have_depends_on_the_power_mode(tmp_path):
    modes = "[power_modes.low]\ndla_cores = 1\n[power_modes.high]\ndla_cores = 2\n"
    path = write(tmp_path, f'family = "jetson"\npower_mode = "high"\ndla_core = 1\n{modes}')
    assert load_target(path).dla_core == 1
    with pytest.raises(TargetError, match=r"the device has 1, counted from 0.*choose a lower one"):
        load_target(path, power_mode="low")


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(UnknownName, match="no target named 'jetsn'; did you mean 'jetson'"):
        load_target("jetsn")
    with pytest.raises(TargetError, match=r"no target file .*none\.toml; known targets: arm-cpu"):
        load_target(tmp_path / "none.toml")
    with pytest.raises(UnknownName, match="did you mean 'gpu'"):
        load_target(write(tmp_path, 'extends = "gpuu"\n'))
    with pytest.raises(TargetError, match="key 'family' is missing"):
        load_target(write(tmp_path, "round_to = 8\n"))
    with pytest.raises(TargetError, match="'cpu' has no power modes"):
        load_target("cpu", power_mode="15W")
    with pytest.raises(TargetError, match="extends is 3"):
        load_target(write(tmp_path, "extends = 3\n"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TargetError, match="no target file"):
        load_target(tmp_path / "folder.toml")
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"\n')
    with pytest.raises(TargetError, match="not valid TOML"):
        load_target(tmp_path / "latin.toml")


def test_a_circle_of_extends_is_named(tmp_path):
    write(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write(tmp_path, 'extends = "a.toml"\n', "b.toml")
    with pytest.raises(TargetError, match=r"a\.toml -> b\.toml -> a\.toml; break the circle"):
        load_target(tmp_path / "a.toml")


def test_a_target_made_in_python_is_checked_the_same_way():
    with pytest.raises(TargetError, match="gpu_mhz is 5"):
        Target(name="x", family="gpu", gpu_mhz=5, power_modes={"A": {"gpu_mhz": 7}})
    with pytest.raises(TargetError, match="round_to is None"):
        Target(name="x", family="gpu", round_to=None)


# ---------------------------------------------------------------- writing and the board

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = words.filter(lambda s: s.strip())
figures = st.floats(0.001, 1e6) | st.integers(1, 10**6)
mode_table = st.fixed_dictionaries(
    {},
    optional={
        k: st.integers(0, 60) if k in ("cuda_cores", "tensor_cores", "dla_cores") else figures
        for k in MODE_FIELDS
    },
)


@st.composite
def targets(draw):
    modes = draw(st.dictionaries(names, mode_table, max_size=3))
    mode = draw(st.sampled_from([None, *modes]))
    plain = draw(mode_table)
    moded = {key for table in modes.values() for key in table}
    facts = {k: v for k, v in plain.items() if k not in moded}
    facts |= modes.get(mode, {})
    batch, memory = draw(st.integers(1, 64)), draw(st.none() | st.integers(2**20, 2**50))
    cores = int(facts.get("dla_cores") or 0) if "dla_cores" in facts else 64
    return Target(
        name=draw(names),
        family=draw(st.sampled_from(FAMILIES)),
        description=draw(words),
        runtime=draw(names),
        precision=draw(st.sampled_from(PRECISIONS)),
        scenario=draw(st.sampled_from(SCENARIOS)),
        round_to=draw(st.integers(1, 1024)),
        opset=draw(st.integers(13, 22)),
        ir_version=draw(st.integers(10, 11)),
        batch=batch,
        max_batch=draw(st.none() | st.integers(batch, 65536)),
        dla_core=draw(st.none() | st.integers(0, cores - 1)) if cores else None,
        workspace_mib=draw(st.none() | st.integers(1, min(2**30, (memory or 2**50) // 2**20))),
        typing=draw(st.sampled_from([None, *TYPINGS])),
        builds=draw(st.none() | st.integers(1, 1000)),
        memory_bytes=memory,
        cpu_isa=draw(st.none() | words),
        tensorrt=draw(st.none() | st.just("10.3")),
        power_mode=mode,
        power_modes=modes,
        promises=draw(st.dictionaries(st.sampled_from(PROMISES), figures)),
        sources=draw(st.dictionaries(st.sampled_from(["opset", "round_to", "sm"]), names)),
        **facts,
    )


@settings(max_examples=150, deadline=None)
@given(target=targets())
def test_toml_and_json_give_the_same_target_back(target, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(to_toml(target), encoding="utf-8")
    assert load_target(path) == target
    text = json.dumps(files.encode(target))
    assert files.decode(Target, json.loads(text)) == target


def test_a_written_target_can_change_its_power_mode(tmp_path):
    path = write(tmp_path, to_toml(load_target("jetson", power_mode="7W")))
    assert load_target(path).gpu_mhz == 408
    assert load_target(path, power_mode="25W").gpu_mhz == 918
    assert load_target(path).name == "jetson"


def test_the_module_needs_nothing_but_the_standard_library():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "tomllib", "tomli", "typer", "rich", "onnx"}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from mint_deploy.target import Target
print(Target(name="t", family="cpu").round_to)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "8\n", done.stderr
