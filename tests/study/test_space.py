"""Spaces: the shipped ones are the public study's grids, and what no study can do is told in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import InputError
from raymotion.published.studies import published_study
from raymotion.study.features import embedding_needs
from raymotion.study.space import JointSpace, base_recipe, build_recipe, check_spaces, read_spaces

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = [REPOSITORY / "tune_spaces" / "emotic", REPOSITORY / "tune_spaces" / "emotic-small"]
SPACE = {"stage": 1, "name": "one", "title": "One", "grid": {"model.fusion": ["simple", "weighted"]}}


@pytest.mark.parametrize("folder", SHIPPED, ids=["study", "small"])
def test_the_shipped_grids_are_those_of_the_public_study(folder: Path) -> None:
    """18 + 10 + 6 + 3 + 3 (emotic_study.md 10; its stage 5 ran one of the three), and as many drawn jointly."""
    spaces = read_spaces(folder)
    check_spaces(spaces, base_recipe(spaces))
    assert [len(list(stage.configurations())) for stage in spaces.stages] == [18, 10, 6, 3, 3]
    assert [stage.name for stage in spaces.stages] == ["backbones", "fusion", "loss", "augmentation", "resampling"]
    assert {stage.published for stage in spaces.stages} == {spaces.published} == {"emotic_study"}
    assert spaces.joint is not None
    varied = {name for stage in spaces.stages for name in stage.grid}
    assert set(spaces.joint.choices) == varied
    drawn = spaces.joint.draw(40, seed=0)
    assert len({yaml.safe_dump(config) for config in drawn}) == 40
    assert spaces.joint.draw(25, seed=0) == drawn[:25] and spaces.joint.draw(40, seed=1) != drawn


def test_every_published_result_belongs_to_a_cell_of_its_grid() -> None:
    published = published_study("emotic_study")
    for stage in read_spaces(SHIPPED[0]).stages:
        known, cells = published.stage(stage.name), list(stage.configurations())
        assert known is not None and all(cell in cells for cell, _ in known.cells), stage.name
        assert max(score for _, score in known.cells) == known.test_map
    assert [len(stage.cells) for stage in published.stages] == [18, 10, 6, 3, 2]


@pytest.mark.slow
def test_what_the_embeddings_must_hold_is_told_without_torch_or_ray() -> None:
    assert embedding_needs(SHIPPED[0]) == {
        "context": ["swin", "efficientnet_b7", "deit"], "body": ["swin", "efficientnet_b7", "deit"],
        "face": ["efficientnet_b7", "mobilenet_v3"], "levels": ["basic", "full"], "tokens": True,
    }  # fmt: skip
    code = (
        "import sys; from raymotion.study.features import embedding_needs; embedding_needs(sys.argv[1]);"
        "print([name for name in ('torch', 'ray', 'timm', 'sklearn', 'imblearn', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SHIPPED[1])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_choice_of_a_group_replaces_the_group(write_spaces: Callable[..., str], tmp_path: Path) -> None:
    """What an earlier choice of the same group said does not shine through."""
    groups = {"none": {"method": "none"}, "mini": {"method": "adasyn", "neighbours": 3}, "full": {"method": "smote"}}
    stage = {**SPACE, "grid": {"resampling": groups}, "recipe": "RECIPE"}
    spaces = read_spaces(write_spaces(tmp_path, {"s.yaml": stage}))
    base = base_recipe(spaces)
    mini = build_recipe(base, spaces, {"resampling": "mini"})
    assert (mini.resampling.method, mini.resampling.neighbours) == ("adasyn", 3)
    full = build_recipe(mini, spaces, {"resampling": "full"})
    assert (full.resampling.method, full.resampling.neighbours) == ("smote", base.resampling.neighbours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"model.fusion": ["simple", "magic"]}}, r"s\.yaml: model\.fusion = 'magic': .*no fusion 'magic'"),
        ({"grid": {"loss.name": ["bce", "hope"]}}, r"s\.yaml: loss\.name = 'hope': no loss is called 'hope'"),
        ({"grid": {"optimiser.lrr": [1]}}, r"s\.yaml: optimiser\.lrr = 1"),
        ({"grid": {"augmentation": ["basic", "wild"]}}, r"s\.yaml: augmentation = 'wild'"),
        ({"grid": {"model.fusion": []}}, r"s\.yaml: model\.fusion has no choices|s\.yaml: .*has no choices"),
        ({"grid": {"model.fusion": ["simple", "simple"]}}, r"s\.yaml: .*names a choice twice"),
        ({"grid": {}}, r"s\.yaml: .*varies nothing"),
        ({"grid": {"seed": [0, 1]}}, r"s\.yaml: .*seed is a field that a study cannot vary"),
        ({"grid": {"optimiser.epochs": [20, 40]}}, r"s\.yaml: .*optimiser\.epochs is a field that"),
        ({"grid": {"optimiser": {"long": {"epochs": 40}}}}, r"s\.yaml: .*optimiser is a field that"),
        ({"fixed": {"select_by": "bce"}}, r"s\.yaml: .*select_by is a field that"),
        ({"grid": {"data.samples": ["a"]}}, r"s\.yaml: .*data\.samples is a field that"),
        ({"grid": {"data.holdout_domain": [["source=a"], ["source=b"]]}}, r"s\.yaml: .*prepared anew"),
        ({"grid": {"probe.labels": ["names", "socratis-29"]}}, r"s\.yaml: .*prepared anew"),
        ({"gird": {}}, r"s\.yaml: there is no setting gird"),
        ({"stopping": {"reduction_factor": 1}}, r"s\.yaml: .*reduction_factor"),
        ({"published": "no_such"}, r"s\.yaml: there is no published study 'no_such'"),
        ({"published": "../x"}, r"s\.yaml: there is no published study"),
        ({"name": "Not/a name"}, r"s\.yaml: .*name"),
    ],
)  # fmt: skip
def test_what_no_study_can_do_is_told_with_file_and_field(
    write_spaces: Callable[..., str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_spaces(tmp_path, {"s.yaml": {**SPACE, "recipe": "RECIPE", **change}})
    with pytest.raises(InputError, match=message) as error:
        spaces = read_spaces(folder)
        check_spaces(spaces, base_recipe(spaces))
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_study(write_spaces: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no stage"):
        read_spaces(tmp_path)
    one = {**SPACE, "recipe": "RECIPE"}
    with pytest.raises(InputError, match="is stage 1, as one is"):
        read_spaces(write_spaces(tmp_path / "a", {"a.yaml": one, "b.yaml": {**one, "name": "two"}}))
    with pytest.raises(InputError, match="called one already"):
        read_spaces(write_spaces(tmp_path / "b", {"a.yaml": one, "b.yaml": {**one, "stage": 2}}))
    with pytest.raises(InputError, match="start from several recipes"):
        read_spaces(
            write_spaces(tmp_path / "c", {"a.yaml": one, "b.yaml": {**one, "stage": 2, "name": "b", "recipe": "x"}})
        )
    spaces = read_spaces(write_spaces(tmp_path / "d", {"a.yaml": one}))
    with pytest.raises(InputError, match="has no stage 'two'"):
        spaces.only(["two"])


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    count=st.integers(1, 300),
    seed=st.integers(0, 5),
)
def test_the_joint_draw_is_without_replacement_and_complete(sizes: list[int], count: int, seed: int) -> None:
    choices: dict[str, Any] = {f"f{i}": list(range(size)) for i, size in enumerate(sizes)}
    space = JointSpace(name="joint", title="t", choices=choices)
    drawn = space.draw(count, seed=seed)
    total = len(list(space.configurations()))
    assert len(drawn) == min(count, total) == len({tuple(config.items()) for config in drawn})
    assert all(config[name] in values for config in drawn for name, values in choices.items())
    even = space.draw(count, seed=seed, refused=lambda config: config["f0"] % 2 == 1)
    assert len(even) == min(count, total // sizes[0] * ((sizes[0] + 1) // 2)) and all(c["f0"] % 2 == 0 for c in even)
