"""A plan that a person reads, edits and replays: every edit works, or is refused with what to do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nets import build
from torch import Tensor, nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.criteria import score
from mint_deploy.errors import DataError, PlanError
from mint_deploy.files import read_value, write_json, write_value
from mint_deploy.graph import Graph
from mint_deploy.plan import plan
from mint_deploy.plan_file import (
    by_hand,
    faults_of,
    is_costed,
    layer_rows,
    macs_of,
    make_plan,
    read_plan,
    recosted,
)
from mint_deploy.surgery import cut
from mint_deploy.trace import trace

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, tuple[Tensor, ...], Graph, PruningPlan]:
    """A plan in steps of 8, for a small residual network."""
    model, inputs = build("resnet20")
    graph = trace(model, inputs)
    chosen = plan(
        graph,
        score(graph, None, criterion="magnitude"),
        target="cpu",
        macs=0.5,
        round_to=8,
        model="net",
    )
    return model, inputs, graph, chosen


@pytest.fixture
def file(made: tuple[Any, Any, Any, PruningPlan], tmp_path: Path) -> Path:
    write_value(tmp_path / "plan.json", made[3])
    return tmp_path / "plan.json"


def edit(file: Path, change: Edit, group: int = 0) -> Path:
    """Change one group of the file, as a person would."""
    body = json.loads(file.read_text())
    change(body["groups"][group])
    file.write_text(json.dumps(body))
    return file


# ---------------------------------------------------------------- read


def test_every_group_and_every_choice_stands_on_a_line_of_its_own(
    file: Path, made: tuple[Any, Any, Any, PruningPlan]
) -> None:
    lines = file.read_text().splitlines()
    assert max(map(len, lines)) < 250
    keep = [line for line in lines if line.strip().startswith('"keep": [')]
    assert len(keep) == len(made[3].groups)
    members = sum(len(g.members) for g in made[3].groups)
    assert len(lines) < 5 * members, "about one line for each slice"
    assert read_plan(file).digest() == made[3].digest()


def test_json_that_people_read_is_the_json_that_was_meant(tmp_path: Path) -> None:
    body = {
        "text": 'a "quote", a\nline, ü',
        "empty": [{}, [], None, True],
        "long": list(range(200)),
        "pairs": [[i, i + 1] for i in range(60)],
        "nested": {f"key {i}": {"a": [1.5, "x" * 90], "b": {"c": ["y" * 90]}} for i in range(3)},
        "mixed": [1, [2, [3, {"four": "z" * 200}]]],
    }
    write_json(tmp_path / "x.json", body, kind="Test")
    text = (tmp_path / "x.json").read_text()
    assert {k: v for k, v in json.loads(text).items() if k in body} == body
    assert len(text.splitlines()) < 60
    assert not any(line.startswith("{") for line in text.splitlines()[1:])


def test_the_layers_table_says_what_the_cut_leaves(
    made: tuple[nn.Module, Any, Graph, PruningPlan],
) -> None:
    model, _, graph, chosen = made
    slim = cut(model, chosen)
    rows = {row.name: row for row in layer_rows(chosen)}
    assert set(rows) == {layer.name for layer in graph.layers.values()}
    for name, row in rows.items():
        assert row.width == model.get_submodule(name).weight.shape[0]
        assert row.kept == slim.get_submodule(name).weight.shape[0]
    assert sum(row.macs for row in rows.values()) == chosen.before.macs
    assert macs_of(chosen) == chosen.after.macs
    assert macs_of(dataclasses.replace(chosen, layers=())) is None


# ---------------------------------------------------------------- edit


def test_any_order_is_read_and_sorted(
    file: Path, made: tuple[nn.Module, Any, Any, PruningPlan]
) -> None:
    edit(file, lambda g: g.update(keep=[7, 3, 1, 0, 15, 14, 9, 8]))
    read = read_plan(file)
    assert read.groups[0].keep == (0, 1, 3, 7, 8, 9, 14, 15)
    assert cut(made[0], read).conv1.out_channels == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.update(keep=[]), "keeps nothing; at least one unit must stay"),
        (lambda g: g.update(keep=[*range(7), 16]), "which names 16, which is outside"),
        (lambda g: g.update(keep=[-1, *range(7)]), "which names -1, which is outside"),
        (lambda g: g.update(keep=[3, *range(7)]), "which names 3 twice"),
        (
            lambda g: g.update(keep=list(range(11))),
            "keeps 11 of 16 units, and its round_to is 4: keep 8 or 12, or write round_to 1",
        ),
        (lambda g: g.update(keep=[1, 2, 3]), "its round_to is 4: keep 4, or write round_to 1"),
        (lambda g: g.update(round_to=0), "has round_to 0; expected 1 or more"),
    ],
)
def test_choices_that_cannot_be_are_refused_with_what_to_do(
    change: Edit, words: str, file: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan(edit(file, change))
    assert "group 'conv1'" in str(caught.value)
    assert words in str(caught.value)
    assert "mend 'keep' in the file" in str(caught.value)


def test_other_widths_are_possible_for_who_says_so(
    file: Path, made: tuple[nn.Module, Any, Any, PruningPlan]
) -> None:
    edit(file, lambda g: g.update(keep=list(range(11)), round_to=1))
    assert cut(made[0], read_plan(file)).conv1.out_channels == 11


def test_a_group_that_keeps_everything_need_not_be_a_multiple(file: Path) -> None:
    edit(file, lambda g: g.update(keep=list(range(16)), round_to=5))
    assert not read_plan(file).groups[0].removed


def slice_gone(g: dict[str, Any]) -> None:
    del g["members"][2]


def slice_moved(g: dict[str, Any]) -> None:
    g["members"][1]["index"]["start"] = 1


def other_tensor(g: dict[str, Any]) -> None:
    g["members"][0]["tensor"] = "layer1.0.conv2.weight"


def not_read(g: dict[str, Any]) -> None:
    member = next(m for m in g["members"] if m["reads"])
    member["reads"] = False


def other_size(g: dict[str, Any]) -> None:
    g.update(size=12, keep=list(range(8)))


def twice_the_slice(g: dict[str, Any]) -> None:
    g["members"][0]["index"]["step"] = 0


def shorter(g: dict[str, Any]) -> None:
    g["members"][0]["index"]["units"] = 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (slice_gone, "more than 'keep' and 'round_to' was edited"),
        (not_read, "more than 'keep' and 'round_to' was edited"),
        (slice_moved, "'bn1.weight' has indices outside its 16 entries"),
        (other_tensor, "share slices of 'layer1.0.conv2.weight'"),
        (other_size, "'conv1.weight' lists 16 of 12 units"),
        (twice_the_slice, "share slices of 'conv1.weight' along dimension 0"),
        (shorter, "'conv1.weight' lists 9 of 16 units"),
        (lambda g: g.update(name="layer1.0.conv1"), "group 'layer1.0.conv1' is there 2 times"),
        (lambda g: g.update(name="nothing"), "more than 'keep' and 'round_to' was edited"),
    ],
)
def test_what_describes_the_network_is_not_to_be_edited(
    change: Edit, words: str, file: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan(edit(file, change))
    assert words in str(caught.value)


def constants(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def apply(file: Path) -> Path:
        body = json.loads(file.read_text())
        change(body["constants"][0])
        file.write_text(json.dumps(body))
        return file

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(value=3), "more than 'keep' and 'round_to' was edited"),
        (lambda c: c.update(factor=2), "more than 'keep' and 'round_to' was edited"),
        (lambda c: c["of"][0].__setitem__(0, "no group"), "counts units of group 'no group'"),
        (lambda c: c["of"][0][1].append(99), "counts units that"),
    ],
)
def test_numbers_that_count_units_are_not_to_be_edited(
    change: Callable[[dict[str, Any]], None], words: str, file: Path
) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan(constants(change)(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.update(keep=[1, "2"]), r"groups\[0\].keep\[1\]: expected int, found '2'"),
        (lambda g: g.update(keep=[1, True]), r"keep\[1\]: expected int, found True"),
        (lambda g: g.update(keep=[1.5]), r"keep\[0\]: expected int, found 1.5"),
        (lambda g: g.update(keep="all"), "keep: expected a list, found str"),
        (lambda g: g.pop("keep"), "key 'keep' is missing"),
        (lambda g: g.update(kept=[1]), "unknown key 'kept'"),
    ],
)
def test_what_is_no_list_of_numbers_is_named(change: Edit, words: str, file: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_plan(edit(file, change))


def test_a_plan_of_an_older_version_has_no_hashes_and_is_read(
    file: Path, made: tuple[Any, Any, Any, PruningPlan]
) -> None:
    body = json.loads(file.read_text())
    for key in ("costed", "structure", "layers", "statistics", "folds"):
        del body[key]
    file.write_text(json.dumps(body))
    read = read_plan(file)
    assert read.digest() == made[3].digest()
    assert is_costed(read)
    edit(file, lambda g: g.update(size=12))
    with pytest.raises(PlanError, match="lists 16 of 12 units"):
        read_plan(file)


def test_ten_faults_are_listed_and_the_rest_counted(file: Path) -> None:
    body = json.loads(file.read_text())
    for group in body["groups"]:
        group["keep"] = []
    file.write_text(json.dumps(body))
    with pytest.raises(PlanError) as caught:
        read_plan(file)
    assert str(caught.value).count("keeps nothing") == 10
    assert f"and {len(body['groups']) - 10} more" in str(caught.value)


def test_plans_that_this_program_makes_have_no_faults(
    made: tuple[Any, Any, Graph, PruningPlan],
) -> None:
    assert faults_of(made[3]) == []
    with pytest.raises(PlanError, match=r"'conv1' is to keep a unit twice: \[1, 1, 2\]"):
        make_plan(made[2], {"conv1": [2, 1, 1]})


# ---------------------------------------------------------------- never a stale claim


def test_costs_are_not_believed_after_an_edit(
    file: Path, made: tuple[Any, Any, Graph, PruningPlan]
) -> None:
    graph = made[2]
    assert is_costed(read_plan(file))
    read = read_plan(edit(file, lambda g: g.update(keep=list(range(16)))))
    assert not is_costed(read)
    assert read.after == made[3].after, "what the file still says"
    wide = by_hand(read, graph)
    assert is_costed(wide)
    assert wide.after == graph.cost_of({g.name: g.keep for g in read.groups})
    assert wide.after.macs > read.after.macs
    assert macs_of(read) == wide.after.macs, "the layers' table follows the edit at once"
    assert wide.budget == {}
    assert wide.notes[-1] == "edited by hand after 'magnitude' had chosen"
    again = by_hand(made[3], graph)
    assert (again.budget, again.notes) == (made[3].budget, made[3].notes)
    write_value(file, wide)
    assert read_plan(file) is not None


def test_the_plan_of_another_network_is_not_costed(
    made: tuple[Any, Any, Graph, PruningPlan],
) -> None:
    other = trace(*build("unet"))
    with pytest.raises(PlanError, match=r"has no group 'conv1' of 16 units.*give the model"):
        recosted(made[3], other)


def test_hashes_survive_the_file(file: Path, made: tuple[Any, Any, Any, PruningPlan]) -> None:
    read = read_value(file, PruningPlan)
    assert (read.costed, read.structure) == (made[3].costed, made[3].structure)
    assert len(read.structure) == 64
