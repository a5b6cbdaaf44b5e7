"""The run folder: one holder, its own settings, nothing foreign touched, nothing half-written."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mint_deploy import files
from mint_deploy.errors import DataError, RunFolderError
from mint_deploy.folders import explain_full_disk
from mint_deploy.runfolder import (
    FILES,
    MANIFEST,
    RunFolder,
    check_folder,
    read_manifest,
)

SETTINGS = {"macs": 0.5, "model": None, "ignore": ("conv1",), "seed": 3}


def start(path: Path, settings: dict[str, object] | None = None, **more: object) -> RunFolder:
    return RunFolder.start(path, settings or SETTINGS, seed=3, **more)  # type: ignore[arg-type]


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# ---------------------------------------------------------------- opening


def test_a_new_folder_holds_its_manifest(tmp_path: Path) -> None:
    with closing(start(tmp_path / "a" / "run", command=["mint-deploy", "x"], versions={"t": "1"})):
        assert names(tmp_path / "a" / "run") == [".lock", MANIFEST]
    manifest = read_manifest(tmp_path / "a" / "run")
    assert manifest.settings == {"macs": 0.5, "model": None, "ignore": ["conv1"], "seed": 3}
    assert (manifest.seed, manifest.command, manifest.versions) == (
        3,
        ("mint-deploy", "x"),
        {"t": "1"},
    )
    body = json.loads((tmp_path / "a" / "run" / MANIFEST).read_text())
    assert body["kind"] == "RunManifest"


def test_an_empty_folder_will_do_and_the_same_settings_open_it_again(tmp_path: Path) -> None:
    with closing(start(tmp_path)) as run:
        run.complete("score", reads=(), writes=(), settings={}, seconds=1)
    with closing(start(tmp_path)) as run:
        assert list(run.manifest.stages) == ["score"]
    with closing(RunFolder.open(tmp_path)) as run:
        assert list(run.manifest.stages) == ["score"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_things_is_refused_and_not_touched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "plan.json").write_text("a plan of something else")
    with pytest.raises(RunFolderError, match=r"not a run folder.*'plan.json' and 1 more.*--out"):
        start(tmp_path, force=force)
    assert names(tmp_path) == ["plan.json", "thesis.txt"]
    assert (tmp_path / "plan.json").read_text() == "a plan of something else"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file, expected a folder"):
        start(tmp_path / "run")


def test_opening_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist; start one with"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match=r"has no run.json"):
        RunFolder.open(tmp_path)
    assert names(tmp_path) == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    start(tmp_path).close()
    other = {**SETTINGS, "macs": 0.4}
    with pytest.raises(RunFolderError, match=r"macs is 0\.5 there, 0\.4 here.*--force"):
        start(tmp_path, other)
    with pytest.raises(RunFolderError, match=r"macs is 0\.5 there, 0\.4 here"):
        check_folder(tmp_path, other)
    check_folder(tmp_path, SETTINGS)


def test_force_takes_our_files_away_and_no_others(tmp_path: Path) -> None:
    start(tmp_path).close()
    for name in FILES:
        if name != MANIFEST:
            path = tmp_path / name
            path.mkdir() if "." not in name else path.write_text("old")
    (tmp_path / "checkpoints" / "x").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with closing(start(tmp_path, {**SETTINGS, "macs": 0.4}, force=True)) as run:
        assert run.manifest.settings["macs"] == 0.4
    assert names(tmp_path) == [".lock", "notes.txt", MANIFEST]


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    start(tmp_path).close()
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(RunFolderError, match=r"damaged or not JSON.*--force"):
        start(tmp_path)
    with closing(start(tmp_path, force=True)) as run:
        assert not run.manifest.stages


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    start(tmp_path).close()
    (tmp_path / ".plan.json.abc.part").write_text("half")
    (tmp_path / ".bundle.x.part").mkdir()
    (tmp_path / ".bundle.x.part" / "model.onnx").write_text("half")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".cut.x.part").write_text("half")
    RunFolder.open(tmp_path).close()
    assert names(tmp_path) == [".lock", "checkpoints", MANIFEST]
    assert names(tmp_path / "checkpoints") == []


def test_killed_between_mkdir_and_manifest(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".run.json.abc.part").write_text("ha")
    start(tmp_path).close()
    assert names(tmp_path) == [".lock", MANIFEST]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match="cannot be written: Permission denied"):
        start(tmp_path / "run")


# ---------------------------------------------------------------- one holder


HOLD = """
import sys
from mint_deploy.runfolder import RunFolder
run = RunFolder.start(sys.argv[1], {"a": 1}, seed=0)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_use_names_its_holder_until_it_dies(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for attempt in (
            lambda: RunFolder.start(tmp_path, {"a": 1}, seed=0),
            lambda: RunFolder.start(tmp_path, {"a": 1}, seed=0, force=True),
            lambda: RunFolder.open(tmp_path),
        ):
            with pytest.raises(RunFolderError, match=f"in use by process {holder.pid}"):
                attempt()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    RunFolder.open(tmp_path).close()


def test_a_refused_folder_is_free_again(tmp_path: Path) -> None:
    start(tmp_path).close()
    with pytest.raises(RunFolderError):
        start(tmp_path, {"other": 1})
    RunFolder.open(tmp_path).close()


# ---------------------------------------------------------------- stages


def write(run: RunFolder, name: str, text: str) -> None:
    with files.atomic(run / name) as part:
        part.write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with closing(start(tmp_path)) as opened:
        write(opened, "scores.npz", "scores")
        write(opened, "plan.json", "plan")
        opened.complete(
            "plan",
            reads=("scores.npz", "target.toml"),
            writes=("plan.json", "never.json"),
            settings={"macs": 0.5, "ignore": ("a",)},
            seconds=1.25,
        )
        yield opened


def fresh(run: RunFolder, **settings: object) -> bool:
    given = {"macs": 0.5, "ignore": ("a",), **settings}
    return run.fresh("plan", ("scores.npz", "target.toml"), given)


def test_a_finished_stage_is_fresh(run: RunFolder) -> None:
    assert fresh(run)
    record = run.manifest.stages["plan"]
    assert record.outputs == ("plan.json",)
    assert record.inputs["target.toml"] == ""
    assert record.seconds == 1.25


def test_it_stays_fresh_when_the_folder_is_opened_again(run: RunFolder) -> None:
    path = run.path
    run.close()
    with closing(RunFolder.open(path)) as again:
        assert fresh(again)
    run._handle = os.open(os.devnull, os.O_RDONLY)  # the fixture closes it once more


@pytest.mark.parametrize(
    "change",
    [
        lambda run: write(run, "scores.npz", "others"),
        lambda run: write(run, "target.toml", "it was not there"),
        lambda run: (run / "plan.json").unlink(),
        lambda run: run.drop(("plan",), ()),
    ],
    ids=["input changed", "input appeared", "output gone", "forgotten"],
)
def test_what_makes_a_stage_stale(run: RunFolder, change: Callable[[RunFolder], object]) -> None:
    change(run)
    assert not fresh(run)


def test_another_setting_makes_it_stale(run: RunFolder) -> None:
    assert not fresh(run, macs=0.4)


def test_an_output_edited_by_hand_is_taken_as_it_is(run: RunFolder) -> None:
    write(run, "plan.json", "my own plan")
    assert fresh(run)


def test_dropping_stages_and_files(run: RunFolder) -> None:
    (run / "bundle").mkdir()
    write(run, "bundle/model.onnx", "x")
    run.drop(("plan", "never"), ("plan.json", "bundle", "absent.json"))
    assert names(run.path) == [".lock", MANIFEST, "scores.npz"]
    assert read_manifest(run.path).stages == {}


def test_the_hash_of_a_folder_is_that_of_its_files(run: RunFolder) -> None:
    (run / "bundle").mkdir()
    write(run, "bundle/a", "1")
    first = run.hash("bundle")
    write(run, "bundle/b", "22")
    second = run.hash("bundle")
    (run / "bundle" / "b").unlink()
    assert run.hash("bundle") == first != second
    assert run.hash("nothing") == ""


def test_facts_and_settings_are_kept(run: RunFolder) -> None:
    run.note(input_shape=(3, 4), classes=2)
    run.note(classes=10)
    run.resettle({"macs": 0.4})
    manifest = read_manifest(run.path)
    assert manifest.facts == {"input_shape": [3, 4], "classes": 10}
    assert manifest.settings == {"macs": 0.4}
    assert list(manifest.stages) == ["plan"]


# ---------------------------------------------------------------- taking back


def test_a_run_that_came_to_nothing_is_taken_back(tmp_path: Path) -> None:
    with closing(start(tmp_path / "runs" / "new")) as run:
        run.discard()
    assert names(tmp_path) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with closing(start(tmp_path)) as run:
        (tmp_path / "notes.txt").write_text("mine")
        run.discard()
    assert names(tmp_path) == ["notes.txt"]


def test_what_is_finished_is_not_taken_back(run: RunFolder) -> None:
    run.discard()
    assert fresh(run)


def test_a_run_of_an_earlier_process_is_not_taken_back(tmp_path: Path) -> None:
    start(tmp_path).close()
    with closing(start(tmp_path)) as run:
        run.discard()
    assert MANIFEST in names(tmp_path)


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained(tmp_path: Path, code: int) -> None:
    cause = OSError(code, os.strerror(code))
    with (
        pytest.raises(RunFolderError, match=r"disk that holds .* is full: stage 'export'"),
        explain_full_disk(tmp_path, "export"),
    ):
        raise ValueError("the library hides it") from cause


def test_a_library_that_only_says_so_is_understood(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="full"), explain_full_disk(tmp_path, "cut"):
        raise RuntimeError("IoError: No space left on device (os error 28)")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path, "cut"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(DataError), explain_full_disk(tmp_path, "cut"):
        raise DataError("no")


def test_a_disk_that_is_really_full_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        with closing(start(disk / "run")) as run:
            write(run, "plan.json", "small")
            before = names(run.path)
            with (
                pytest.raises(RunFolderError, match="is full: stage 'plan'"),
                explain_full_disk(run.path, "plan"),
            ):
                write(run, "plan.json", "x" * 200_000)
            assert names(run.path) == before
            assert (run / "plan.json").read_text() == "small"
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", str(disk)], check=True, capture_output=True)
