"""Optimised models on disk: loaded where everything agrees, made anew where anything does not."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import save_conv

from mint_deploy import _ort_cache as cache
from mint_deploy import files, plugins

ort = plugins.load("runtime", "onnxruntime")


@pytest.fixture
def model(tmp_path):
    return save_conv(tmp_path / "m.onnx")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def image(batch=2):
    return {"input": np.random.default_rng(0).standard_normal((batch, 3, 8, 8), np.float32)}


def run(model, folder, **settings):
    """Whether the optimised model was loaded, and what it computes."""
    with ort.runner(ort.build(model), cache=folder, **settings) as live:
        return live.from_cache, live.infer(image())["output"]


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_session_loads_what_the_first_one_made(model, folder):
    plain = run(model, False)
    first, second = run(model, folder), run(model, folder)
    assert (plain[0], first[0], second[0]) == (False, False, True)
    np.testing.assert_array_equal(first[1], plain[1])
    np.testing.assert_array_equal(second[1], plain[1])
    assert len(entries(folder)) == 2, "a model and its hash, and no piece of either"
    kept = next(folder.glob("*.onnx"))
    note = json.loads(kept.with_suffix(".json").read_text())
    assert note["sha256"] == files.sha256(kept)


def test_what_was_optimised_is_not_optimised_again(model, folder):
    for expected in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        with ort.runner(ort.build(model), cache=folder) as live:
            options = live._session.get_session_options()
            assert options.graph_optimization_level.name == expected
            assert live.engine.flags["graph_optimization"] == "all"


def test_what_is_kept_is_the_optimised_graph(model, folder):
    run(model, folder)
    before = {n.op_type for n in onnx.load(model).graph.node}
    after = {n.op_type for n in onnx.load(next(folder.glob("*.onnx"))).graph.node}
    assert "Relu" in before
    assert "Relu" not in after, "fused"


def test_it_is_recorded_and_off_unless_asked_for(model, folder, monkeypatch):
    monkeypatch.setenv("MINT_DEPLOY_CACHE", str(folder))
    engine = ort.build(model)
    assert engine.flags["optimised_cache"] == "off"
    assert not folder.exists()
    kept = ort.build(model, None, None, cache=True)
    assert kept.flags["optimised_cache"] == "on"
    with ort.runner(kept) as live:  # the flag of the engine is enough, in another process too
        assert live.from_cache
    assert not any(str(folder) in value for value in kept.flags.values())


def test_another_model_level_or_machine_is_another_entry(model, folder, monkeypatch):
    run(model, folder)
    assert run(model, folder, graph="extended")[0] is False
    assert run(model, folder, graph="extended")[0] is True
    assert run(model, folder, threads=2)[0] is True, "threads change no graph"
    monkeypatch.setattr(cache, "processor", lambda: "another one")
    assert run(model, folder)[0] is False
    save_conv(model, channels=4)
    changed = run(model, folder)
    assert changed[0] is False
    assert changed[1].shape == (2, 4), "never the model of before"


@pytest.mark.parametrize("part", ["digest", "version", "flags", "machine"])
def test_the_name_of_an_entry_depends_on_everything(part):
    parts = {"digest": "a", "version": "1.32", "flags": {"graph": "all"}, "machine": "avx2"}
    other = {"digest": "b", "version": "1.33", "flags": {"graph": "none"}, "machine": "avx512"}
    assert cache.entry_key(**parts) == cache.entry_key(**parts)
    assert cache.entry_key(**parts) != cache.entry_key(**{**parts, part: other[part]})


def test_the_order_of_flags_does_not_matter():
    one = cache.entry_key("a", "1", {"x": "1", "y": "2"}, "m")
    assert one == cache.entry_key("a", "1", {"y": "2", "x": "1"}, "m")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "note", "no note", "text"])
def test_a_damaged_entry_is_passed_over_and_written_anew(model, folder, damage):
    first = run(model, folder)
    kept, note = next(folder.glob("*.onnx")), next(folder.glob("*.json"))
    data = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(data[: len(data) // 2])
    elif damage == "flip":  # in a weight: it would load, and compute something else
        at = data.index(np.float32(onnx_weight(kept)).tobytes())
        kept.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
    elif damage == "empty":
        kept.write_bytes(b"")
    elif damage == "gone":
        kept.unlink()
    elif damage == "note":
        note.write_text("{")
    elif damage == "no note":
        note.unlink()
    else:
        kept.write_text("no model")
    again = run(model, folder)
    assert again[0] is False
    np.testing.assert_array_equal(again[1], first[1])
    healed = run(model, folder)
    assert healed[0] is True
    np.testing.assert_array_equal(healed[1], first[1])


def onnx_weight(path):
    return onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).ravel()[0]


def test_an_entry_that_onnxruntime_refuses_is_made_anew(model, folder):
    """Its hash is right, so only the loading tells."""
    first = run(model, folder)
    key = next(folder.glob("*.onnx")).stem
    cache.keep(folder, key, lambda part: part.write_text("no model"))
    assert cache.find(folder, key) is not None
    again = run(model, folder)
    assert again[0] is False
    np.testing.assert_array_equal(again[1], first[1])
    assert run(model, folder)[0] is True


def test_a_writer_that_dies_leaves_nothing(folder):
    def dies(part):
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.keep(folder, "k", dies)
    assert entries(folder) == []
    assert cache.find(folder, "k") is None


def test_a_folder_that_cannot_be_written_keeps_nobody_from_running(model, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    from_cache, found = run(model, blocked)
    assert from_cache is False
    np.testing.assert_array_equal(found, run(model, False)[1])


def test_an_error_of_the_model_stays_its_own(folder, tmp_path):
    from mint_deploy.errors import ModelError

    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        ort.build(tmp_path / "text.onnx", None, None, cache=folder)


def test_the_entries_used_longest_ago_go_first(folder, monkeypatch):
    monkeypatch.setattr(cache, "_MOST_ENTRIES", 3)
    for i in range(5):
        cache.keep(folder, f"k{i}", lambda part, i=i: part.write_bytes(b"%d" % i))
        os.utime(folder / f"k{i}.onnx", (i, i))
        if i == 3:
            assert cache.find(folder, "k1") is not None, "which counts as using it"
    assert entries(folder) == ["k1.json", "k1.onnx", "k3.json", "k3.onnx", "k4.json", "k4.onnx"]


def test_an_entry_can_be_read_by_everybody(folder):
    cache.keep(folder, "k", lambda part: part.write_bytes(b"x"))
    assert stat.S_IMODE((folder / "k.onnx").stat().st_mode) == 0o644


@given(st.binary(max_size=60), st.integers(0, 59), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data, at, change):
    folder = tmp_path_factory.mktemp("entry")
    cache.keep(folder, "k", lambda part: part.write_bytes(data))
    assert cache.find(folder, "k").read_bytes() == data
    if at < len(data):
        changed = bytearray(data)
        changed[at] ^= change
        (folder / "k.onnx").write_bytes(bytes(changed))
        assert cache.find(folder, "k") is None


def test_the_processor_is_its_instructions_in_any_order(tmp_path):
    def told(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return cache.processor(str(path))

    one = told("processor\t: 0\nmodel name\t: A\nflags\t: avx2 sse\ncpu MHz\t: 1000\n")
    assert one == told("model name\t: A\nflags\t: sse avx2\ncpu MHz\t: 3000\n")
    assert one != told("model name\t: A\nflags\t: sse avx2 avx512f\n")
    assert one != told("model name\t: B\nflags\t: sse avx2\n")
    assert told("Features\t: asimd fp16\n") != told("Features\t: asimd\n")
    assert cache.processor(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MINT_DEPLOY_CACHE": "/a"}, "/a/onnxruntime"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/mint-deploy/onnxruntime"),
        ({"HOME": "/c"}, "/c/.cache/mint-deploy/onnxruntime"),
    ],
)
def test_where_entries_go(environment, expected, monkeypatch):
    for name in ("MINT_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.default_folder() == Path(expected)
