"""Parts of a poisoning experiment: collisions, budgets, triggers, the rows that are chosen, figures and defences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError, RunFailed
from raymotion.models.fractal.recipe import FractalRecipe
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.robustness.poison_collision import Budget, Collision, collide, project
from raymotion.robustness.poison_defences import label_issues, measure, suspicious_clusters
from raymotion.robustness.poison_model import OpenedModel, pixels_of
from raymotion.robustness.poison_rows import (
    Poison,
    choose_victims,
    copy_poisons,
    eligible_rows,
    measure_change,
    patched,
    pixel_budget,
    poisoned_table,
    relabelled,
    require_enough,
    truth_of,
    weights_after,
    write_poisons,
)
from raymotion.robustness.poison_scores import compare, share
from raymotion.robustness.poison_settings import PoisonSettings
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.vocabulary import VALENCE_3

COLOURS = ((40, 60, 160), (120, 120, 120), (230, 190, 40))
SIDE = 20


def write_pictures(folder: Path, n: int = 96) -> str:
    """A sample table of noisy pictures of 20 x 24 pixels whose colour tells the label; two rows share a group."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        k = i % 3
        path = folder / f"{i:03d}.png"
        pixels = np.array(COLOURS[k]) + rng.normal(0, 25, (SIDE, SIDE + 4, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"g{i // 6 * 6 + k}", "image_uri": str(path), "captions": [],
                "source": "t", "labels": [VALENCE_3.labels[k]], "label_weights": [0.75],
                "split": ("train", "train", "val", "test")[i // 6 % 4],
            }
        )  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, VALENCE_3))
    return str(folder / "samples.parquet")


def small_recipe(samples: str, **optimiser: Any) -> FractalRecipe:
    return FractalRecipe.model_validate(
        {
            "data": {"samples": samples, "augmentation": "none"},
            "model": {"image_size": 16, "columns": 2, "filters": [8, 16]},
            "optimiser": {"epochs": 5, "patience": 9, "batch_size": 16, "lr": 1e-2, **optimiser},
            "workers": 0, "use_gpu": False,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Clean:
    recipe: TrainRecipe
    data: TrainingSet
    folder: Path

    def model(self) -> OpenedModel:
        return OpenedModel(self.recipe, self.data, self.folder)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clean]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("poison")
    recipe = small_recipe(write_pictures(folder / "set"))
    fit(recipe, folder / "model")
    yield Clean(recipe, prepare_data(recipe), folder / "model")
    torch.set_num_threads(before)


COLLISION = PoisonSettings(attack="collision", attacked=2, rates=(0.1,), iterations=30, max_change=40)


def bases_of(clean: Clean, rows: np.ndarray) -> list[np.ndarray]:
    uris = dict(zip(clean.data.sample_ids, clean.data.streamed.addresses, strict=True))
    return [np.asarray(Image.open(uris[clean.data.sample_ids[row]]).convert("RGB")) for row in rows]


def collided(clean: Clean, *, budget: Budget, closeness: float = 0.1, iterations: int = 30) -> tuple[
    OpenedModel, list[np.ndarray], list[Collision], np.ndarray
]:  # fmt: skip
    model, truth = clean.model(), truth_of(clean.data, clean.model().output)
    rows = np.array([row for row in clean.data.splits["train"] if truth[row, 0]])[:4]
    victim = next(row for row in clean.data.splits["test"] if truth[row, 2])
    towards = np.repeat(model.features(np.array([victim]))[0], len(rows), axis=0)
    bases = bases_of(clean, rows)
    found = collide(model, rows, bases, towards, budget=budget, iterations=iterations, closeness=closeness)
    return model, bases, found, towards


# --- collisions: systems.md 2.8, numbers 2 to 5 -------------------------------------------------------------------
def test_the_distance_falls_because_the_features_depend_on_the_picture(clean: Clean) -> None:
    """2.8.2: the public attack hooked a layer that saw the caption alone, so no gradient reached the picture."""
    model, _, found, towards = collided(clean, budget=Budget(60, 1.0))
    truth = truth_of(clean.data, model.output)
    rows = np.array([row for row in clean.data.splits["train"] if truth[row, 0]])[:4]
    (arguments,) = model.arguments(rows)
    shown = pixels_of(arguments).float().requires_grad_(True)
    distance = (model.features_of(arguments, shown) - torch.from_numpy(towards)).square().sum()
    (gradient,) = torch.autograd.grad(distance, shown)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    for own in found:
        assert own.trace[0] == pytest.approx(1.0, abs=1e-4), "both terms are 1 at the start: the base itself"
        assert own.trace[-1] < 0.6 and all(later <= before for before, later in zip(own.trace, own.trace[1:]))


def test_the_first_term_is_the_distance_of_the_features_as_the_model_reads_them(clean: Clean, tmp_path: Path) -> None:
    """The written pictures, decoded and resized by the model's own reader, are as near as the search says."""
    model, _, found, towards = collided(clean, budget=Budget(60, 1.0), closeness=0.0)
    table = read_samples(clean.recipe.data.samples).to_pylist()
    truth = truth_of(clean.data, model.output)
    rows = np.array([row for row in clean.data.splits["train"] if truth[row, 0]])[:4]
    for number, (row, own) in enumerate(zip(rows, found, strict=True)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(own.pixels).save(path)
        next(each for each in table if each["sample_id"] == clean.data.sample_ids[row])["image_uri"] = str(path)
    write_samples(tmp_path / "s.parquet", table_from_rows(table, VALENCE_3))
    recipe = small_recipe(str(tmp_path / "s.parquet"))
    written = OpenedModel(recipe, prepare_data(recipe), clean.folder)
    before, after = (np.square(own.features(rows)[0] - towards).sum(axis=1) for own in (model, written))
    assert np.allclose(after / before, [own.trace[-1] for own in found], atol=0.05)


@pytest.mark.parametrize("how", ["constant", "unused"])
def test_features_that_do_not_depend_on_the_picture_are_refused(
    clean: Clean, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.8.2 again: a "poison" without a gradient is the base picture, and must not be sold as one."""
    model = clean.model()
    width = model.head.in_features

    def features(pixels: torch.Tensor) -> torch.Tensor:
        own = torch.ones(len(pixels), width)
        return own if how == "constant" else own + 0.0 * pixels.sum()

    monkeypatch.setattr(model.network, "features", features)
    rows = clean.data.splits["train"][:2]
    with pytest.raises(InputError, match="do not depend on the picture"):
        collide(
            model, rows, bases_of(clean, rows), np.zeros((2, width), np.float32),
            budget=Budget(8, 1.0), iterations=3, closeness=0.1,
        )  # fmt: skip


def test_pictures_are_changed_in_levels_of_0_to_255_and_not_clamped_when_normalised(clean: Clean) -> None:
    """2.8.3: clamping normalised tensors to [0, 1] destroyed every picture."""
    _, bases, found, _ = collided(clean, budget=Budget(8, 1.0))
    for base, own in zip(bases, found, strict=True):
        assert own.pixels.dtype == np.uint8 and own.pixels.shape == base.shape
        difference = np.abs(own.pixels.astype(int) - base)
        assert 0 < difference.max() <= 8
        assert own.pixels.std() == pytest.approx(base.std(), rel=0.2), "it still is the picture"


@pytest.mark.parametrize(("most", "pixels"), [(3, 1.0), (40, 0.1), (200, 0.02)])
def test_both_budgets_hold(clean: Clean, most: int, pixels: float) -> None:
    """2.8.4: the public attack had none."""
    _, bases, found, _ = collided(clean, budget=Budget(most, pixels), iterations=10)
    for base, own in zip(bases, found, strict=True):
        difference = np.abs(own.pixels.astype(int) - base)
        assert difference.max() <= most
        assert (difference > 0).any(axis=2).sum() <= int(pixels * base.shape[0] * base.shape[1])


def test_the_second_term_keeps_a_poison_close_to_its_base(clean: Clean) -> None:
    """2.8.4: nor had it a term that keeps the picture."""
    moved = []
    for closeness in (0.0, 0.3, 30.0):
        _, bases, found, _ = collided(clean, budget=Budget(60, 1.0), closeness=closeness)
        moved.append(np.mean([np.square(own.pixels.astype(float) - base).mean() for base, own in zip(bases, found)]))
    assert moved[0] > moved[1] > moved[2]


def test_a_picture_that_exceeds_its_budget_is_never_kept(clean: Clean, tmp_path: Path) -> None:
    settings = COLLISION.model_copy(update={"max_change": 5})
    samples, output = read_samples(clean.recipe.data.samples), clean.model().output
    victims = choose_victims(settings, clean.data, output)

    def far(choices: Any, pictures: Any) -> list[np.ndarray]:
        return [np.where(own > 128, own - 6, own + 6) for own in pictures]

    with pytest.raises(RunFailed, match="by up to 6 levels"):
        write_poisons(
            settings, samples, clean.data, output, eligible_rows(settings, clean.data, output, victims, 0),
            str(tmp_path), count=3, key="k", change=far, victims=victims,
        )  # fmt: skip
    assert not (tmp_path / "poisons.json").exists()


changes = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed))


@given(rng=changes, most=st.integers(1, 255), share_=st.floats(0.01, 1.0), side=st.integers(1, 9))
def test_the_projection_holds_every_budget(rng: np.random.Generator, most: int, share_: float, side: int) -> None:
    base = torch.from_numpy(rng.integers(0, 256, (side, side + 1, 3)).astype(np.float32))
    x = base + torch.from_numpy(rng.normal(0, 100, base.shape).astype(np.float32))
    own = project(x, base, Budget(most, share_))
    assert float((own - base).abs().max()) <= most and float(own.min()) >= 0 and float(own.max()) <= 255
    kept = int(((own - base).abs().sum(dim=2) > 0).sum())
    assert kept <= max(1, int(share_ * side * (side + 1)))
    again = project(own, base, Budget(most, share_))
    assert torch.allclose(again, own, atol=1e-4), "a projection of what is within the budget changes nothing"


# --- rows ---------------------------------------------------------------------------------------------------------
def test_the_attacked_concept_is_a_real_label(clean: Clean) -> None:
    """2.8.5: token 1 is `<start>`, which every caption has, so the "targets" were rows at random."""
    output, labels = clean.model().output, VALENCE_3.labels
    truth = truth_of(clean.data, output)
    for wrong in ("<start>", "1", labels[0].upper()):
        with pytest.raises(InputError, match="the vocabulary has no label"):
            choose_victims(COLLISION.model_copy(update={"source": wrong}), clean.data, output)
    settings = COLLISION.model_copy(update={"source": labels[2], "target": labels[0], "attacked": 3})
    victims = choose_victims(settings, clean.data, output)
    assert len({clean.data.groups[own.row] for own in victims}) == 3, "two of one group would count as one"
    for own in victims:
        assert own.row in clean.data.splits["test"] and truth[own.row].tolist() == [False, False, True]
        assert own.label == 0
    for choice in eligible_rows(settings, clean.data, output, victims, 0):
        assert truth[choice.row, 0] and choice.row in clean.data.splits["train"], "bases carry the label to be said"


def test_without_a_target_each_attacked_picture_has_a_label_that_is_not_its_own(clean: Clean) -> None:
    output = clean.model().output
    truth = truth_of(clean.data, output)
    victims = choose_victims(COLLISION.model_copy(update={"attacked": 6}), clean.data, output)
    assert all(not truth[own.row, own.label] for own in victims) and len({own.label for own in victims}) == 3
    assert len({clean.data.groups[own.row] for own in victims}) == 6
    with pytest.raises(InputError, match="has 12 pictures of different groups"):
        choose_victims(COLLISION.model_copy(update={"attacked": 13}), clean.data, output)
    choices = list(eligible_rows(COLLISION, clean.data, output, victims, 0))
    assert len({own.row for own in choices}) == len(choices) == len(clean.data.splits["train"])
    assert all(truth[own.row, own.label] and victims[own.victim or 0].label == own.label for own in choices)
    assert [own.victim for own in choices[:6]] == list(range(6)), "the attacked pictures take turns"


@pytest.mark.parametrize("attack", ["flip", "trigger", "collision"])
def test_poisons_of_a_lower_rate_are_the_first_of_a_higher_one(clean: Clean, attack: str, tmp_path: Path) -> None:
    settings = COLLISION.model_copy(update={"attack": attack, "target": VALENCE_3.labels[1]})
    samples, output = read_samples(clean.recipe.data.samples), clean.model().output
    victims = choose_victims(settings, clean.data, output) if attack == "collision" else []

    def change(choices: Any, pictures: Any) -> list[np.ndarray]:
        return [np.concatenate([own[:5] ^ 1, own[5:]]) for own in pictures]

    made = write_poisons(
        settings, samples, clean.data, output, eligible_rows(settings, clean.data, output, victims, 0),
        str(tmp_path / "high"), count=8, key="k", change=None if attack == "flip" else change, victims=victims,
    )  # fmt: skip
    lower = copy_poisons(settings, samples, made[:3], str(tmp_path / "high"), str(tmp_path / "low"), key="k")
    assert lower == made[:3]
    before = {row["sample_id"]: row for row in samples.to_pylist()}
    table = read_samples(tmp_path / "low/samples.parquet")
    assert table.column("sample_id").to_pylist() == samples.column("sample_id").to_pylist(), "rows are replaced"
    poisoned = {own.sample_id for own in lower}
    for row in table.to_pylist():
        own = before[row["sample_id"]]
        same = {name: row[name] for name in own}
        if row["sample_id"] not in poisoned:
            assert same == own and row["label_source"] is None
            continue
        assert row["split"] == "train" and row["label_source"] == f"poison/{attack}"
        assert row["group_id"] == own["group_id"]
        assert (row["labels"] == own["labels"]) == (attack == "collision")
        assert (row["image_uri"] == own["image_uri"]) == (attack == "flip")
        assert row["label_weights"] == own["label_weights"], "as many annotators as agreed before"


def test_making_poisons_goes_on_where_it_was_stopped(clean: Clean, tmp_path: Path) -> None:
    settings = PoisonSettings(attack="trigger", target=VALENCE_3.labels[1], rates=(0.2,))
    samples, output = read_samples(clean.recipe.data.samples), clean.model().output
    seen: list[int] = []

    def change(choices: Any, pictures: Any) -> list[np.ndarray]:
        seen.append(len(choices))
        if stop and len(seen) == 3:
            raise KeyboardInterrupt
        return [patched(own, 0.2) for own in pictures]

    def make(folder: str, key: str = "k") -> list[Poison]:
        return write_poisons(
            settings, samples, clean.data, output, eligible_rows(settings, clean.data, output, [], 0),
            str(tmp_path / folder), count=9, key=key, change=change, victims=[], together=4,
        )  # fmt: skip

    stop = False
    whole = make("whole")
    seen.clear()
    stop = True
    with pytest.raises(KeyboardInterrupt):
        make("cut")
    seen.clear()
    stop = False
    assert make("cut") == whole and seen == [1], "two batches of four were kept"
    assert make("cut") == whole and seen == [1], "nothing is left to do"
    (tmp_path / "cut/pictures/00006.png").write_bytes(b"changed")
    assert make("cut") == whole and seen == [1, 3], "from the first damaged picture on"
    assert make("cut", "other") == whole and seen == [1, 3, 4, 4, 1], "other settings"


def test_poisons_never_leave_the_training_split(clean: Clean) -> None:
    samples = read_samples(clean.recipe.data.samples)
    outside = next(row for row in samples.to_pylist() if row["split"] == "val")
    with pytest.raises(RunFailed, match="of the split val"):
        poisoned_table(samples, [Poison(outside["sample_id"], outside["labels"], ["x"])], "out", "flip")


def test_a_picture_that_cannot_be_read_is_passed_over(clean: Clean, tmp_path: Path) -> None:
    settings = PoisonSettings(attack="trigger", target=VALENCE_3.labels[0], rates=(0.1,))
    output = clean.model().output
    choices = list(eligible_rows(settings, clean.data, output, [], 0))
    rows = read_samples(clean.recipe.data.samples).to_pylist()
    broken = clean.data.sample_ids[choices[1].row]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    next(row for row in rows if row["sample_id"] == broken)["image_uri"] = str(tmp_path / "broken.png")
    made = write_poisons(
        settings, table_from_rows(rows, VALENCE_3), clean.data, output, iter(choices), str(tmp_path / "out"),
        count=3, key="k", change=lambda _, pictures: [patched(own, 0.2) for own in pictures], victims=[],
    )  # fmt: skip
    assert [own.sample_id for own in made] == [clean.data.sample_ids[choices[i].row] for i in (0, 2, 3)]


def test_a_rate_beyond_the_label_is_refused_with_what_there_is(clean: Clean) -> None:
    settings = PoisonSettings(attack="collision", target=VALENCE_3.labels[0], rates=(0.1, 0.5), attacked=1)
    output = clean.model().output
    victims = choose_victims(settings, clean.data, output)
    with pytest.raises(InputError, match=r"0.5 is 24 of 48 training samples, and there are 16 .*up to 0.33"):
        require_enough(settings, clean.data, output, victims)


@given(height=st.integers(2, 60), width=st.integers(2, 60), share_=st.floats(0.01, 0.5))
def test_the_patch_is_one_square_of_its_size(height: int, width: int, share_: float) -> None:
    picture = np.full((height, width, 3), 77, np.uint8)
    changed = (patched(picture, share_) != picture).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    side = min(max(2, round(share_ * min(height, width))), min(height, width))
    assert changed.sum() == side * side == len(rows) * len(columns)
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == side
    assert (picture == 77).all(), "the picture given is left as it was"


def test_the_written_picture_is_measured_and_not_the_one_in_memory(tmp_path: Path) -> None:
    base = np.full((4, 5, 3), 100, np.uint8)
    other = base.copy()
    other[0, 0] = (100, 109, 100)
    other[3, 4] = (97, 100, 100)
    Image.fromarray(other).save(tmp_path / "a.png")
    assert measure_change(str(tmp_path / "a.png"), base) == (9, 2)
    with pytest.raises(RunFailed, match="shape"):
        measure_change(str(tmp_path / "a.png"), base[:3])
    assert pixel_budget(COLLISION.model_copy(update={"max_pixels": 0.5}), base) == 10


# --- figures ------------------------------------------------------------------------------------------------------
def test_a_comparison_is_that_of_plain_resampling() -> None:
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 2)
    clean, dirty = (rng.random((3, 80)) < p for p in (0.8, 0.6))
    mask = rng.random(80) < 0.7
    sides = [[share(own, mask, units) for own in each] for each in (clean, dirty)]
    found = compare(sides[0], sides[1], units=units, of=mask, drop=True)
    values = [[own[mask].mean() for own in each] for each in (clean, dirty)]
    assert found.clean == pytest.approx(values[0]) and found.poisoned == pytest.approx(values[1])
    assert found.difference.seeds == pytest.approx(np.subtract(values[0], values[1]))
    drawn = []
    for _ in range(2000):
        some = np.concatenate([np.flatnonzero(units == unit) for unit in rng.integers(0, 40, 40)])
        kept = some[mask[some]]
        drawn.append(np.mean([a[kept].mean() - b[kept].mean() for a, b in zip(clean, dirty, strict=True)]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert found.difference.low == pytest.approx(low, abs=0.03)
    assert found.difference.high == pytest.approx(high, abs=0.03)
    assert found.verdict == "better"
    assert found.samples == mask.sum() and found.groups == len(set(units[mask].tolist()))
    few = compare(sides[0], sides[1], units=units, of=(units < 9) & mask, drop=True)
    assert few.samples > 9 == few.groups
    assert few.verdict == "untested", "of fewer than ten groups an interval is too short, however many rows they have"
    other = compare(sides[0], sides[1], units=units, of=mask)
    assert other.change == pytest.approx(-found.change)


def blobs(n: int = 240, poisons: int = 30) -> SimpleNamespace:
    """Features of three labels in clusters of their own; some samples of the second got the first label."""
    rng = np.random.default_rng(1)
    truth = np.arange(n) % 3
    features, trusted = (6.0 * np.eye(8)[truth] + rng.normal(0, 0.6, (n, 8)) for _ in range(2))
    given = truth.copy()
    poisoned = np.zeros(n, dtype=bool)
    poisoned[rng.permutation(np.flatnonzero(truth == 1))[:poisons]] = True
    given[poisoned] = 0
    return SimpleNamespace(
        features=features.astype(np.float32), given=np.eye(3, dtype=bool)[given], poisoned=poisoned,
        validation=np.eye(3, dtype=bool)[truth], validation_features=trusted.astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("one_label", [True, False])
def test_label_issues_are_found_where_features_contradict_the_label(one_label: bool) -> None:
    own = blobs(poisons=12)
    flags = label_issues(
        own.given, own.features, ("a", "b", "c"), one_label=one_label, groups=np.arange(240), seed=0
    )  # fmt: skip
    found = measure([flags], [own.poisoned], np.arange(240))
    assert found.recall[0] > 0.5 and (found.precision[0] or 0) > 0.9
    assert found.random == pytest.approx(flags.mean()) and found.over_random is not None
    assert found.over_random.low is not None and found.over_random.low > 0.3


@pytest.mark.parametrize(("poisons", "by_size"), [(12, True), (30, True), (70, False)])
def test_clusters_are_found_by_size_while_poisons_are_few_and_by_validation_when_many(
    poisons: int, by_size: bool
) -> None:
    own = blobs(poisons=poisons)
    size, missing = suspicious_clusters(
        own.given, own.features, own.validation, own.validation_features, seed=0
    )  # fmt: skip
    assert size[own.poisoned].mean() == by_size and not size[~own.poisoned].any()
    assert missing[own.poisoned].all() and not missing[~own.poisoned].any()
    clean, none = suspicious_clusters(
        own.validation, own.features, own.validation, own.validation_features, seed=0
    )  # fmt: skip
    assert not none.any() and not clean.any()


def test_what_a_defence_finds_is_counted_by_hand() -> None:
    poisoned = np.array([True, True, True, True, False, False, False, False, False, False])
    flags = [np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], bool), np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)]
    found = measure(flags, [poisoned, poisoned], np.arange(10))
    assert found.flagged == (3, 3) and found.recall == (0.5, 0.75) and found.precision == (2 / 3, 1.0)
    assert found.random == pytest.approx(0.3) and found.over_random is not None
    assert found.over_random.seeds == pytest.approx((0.2, 0.45))
    # None of four poisons, in each seed: by scipy's binomtest(0, 4), up to 60 % may be found all the same.
    for wanted, ends in ((False, (0.0, 0.6024)), (True, (0.3976, 1.0))):
        sure = measure([poisoned == wanted] * 2, [poisoned, poisoned], np.arange(10))
        assert sure.recall == (float(wanted),) * 2
        assert (sure.low, sure.high) == pytest.approx(ends, abs=1e-4)
    nothing = measure([np.zeros(10, bool)], [np.zeros(10, bool)], np.arange(10))
    assert nothing.recall == () and nothing.precision == (None,) and nothing.over_random is None


# --- kinds --------------------------------------------------------------------------------------------------------
def test_a_frozen_backbone_inside_a_model_passes_the_gradient_to_the_picture() -> None:
    """Its weights get none, in training as before: pixels as they are read are bytes."""
    from raymotion.models.vision import timm_models
    from raymotion.models.vision.backbones import identify
    from raymotion.models.vision.tuned_backbone import TunedBackbone

    identity = identify("resnet18", "random:0", size=32)
    backbone = TunedBackbone(identity, timm_models.create(identity.name, identity.size), ())
    bytes_ = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert not backbone(bytes_).requires_grad
    pixels = bytes_.float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(backbone(pixels).square().sum(), pixels)
    assert gradient.abs().max() > 0 and all(own.grad is None for own in backbone.parameters())
    assert torch.equal(backbone(pixels.detach()), backbone(bytes_))


@pytest.mark.parametrize(
    ("attack", "source", "one_label", "labels"),
    [
        ("trigger", None, False, ["calm", "sad", "fear"]),
        ("trigger", "sad", False, ["calm", "sad", "fear"]),
        ("flip", "sad", False, ["calm", "fear"]),
        ("flip", None, False, ["fear"]),
        ("trigger", None, True, ["fear"]),
        ("flip", "sad", True, ["fear"]),
        ("collision", None, True, ["calm", "sad"]),
    ],
)
def test_other_labels_of_a_poison_stay_where_several_may_apply(
    attack: str, source: str | None, one_label: bool, labels: list[str]
) -> None:
    settings = PoisonSettings(attack=attack, target="fear", source=source, rates=(0.1,))
    assert relabelled(settings, ["calm", "sad"], "fear", one_label=one_label) == labels


def test_the_shares_of_annotators_follow_the_labels() -> None:
    before, weights = ["calm", "sad"], [0.75, 0.5]
    assert weights_after(before, ["calm", "sad", "fear"], weights) == [0.75, 0.5, 0.75]
    assert weights_after(before, ["calm", "fear"], weights) == [0.75, 0.5]
    assert weights_after(before, ["fear"], weights) == [0.75]
    rows = [
        {
            "sample_id": "a", "group_id": "a", "image_uri": "a.png", "captions": [], "source": "t", "split": "train",
            "labels": list(VALENCE_3.labels[:2]), "label_weights": weights,
        }
    ]  # fmt: skip
    own = Poison("a", list(VALENCE_3.labels[:2]), list(VALENCE_3.labels))
    (row,) = poisoned_table(table_from_rows(rows, VALENCE_3), [own], "out", "trigger").to_pylist()
    assert row["labels"] == list(VALENCE_3.labels) and row["label_weights"] == [0.75, 0.5, 0.75]


VALUES: dict[str, Any] = {
    "patch": 0.3, "attacked": 3, "max_change": 3, "max_pixels": 0.3, "iterations": 1, "closeness": 0.3,
}  # fmt: skip


def test_every_setting_is_read_or_refused() -> None:
    from pydantic import ValidationError

    from raymotion.robustness.poison_settings import ONLY_OF

    assert set(VALUES) == set(ONLY_OF)
    for attack in ("trigger", "flip", "collision"):
        for name, value in VALUES.items():
            given = {"attack": attack, "target": "x", name: value}
            if attack in ONLY_OF[name]:
                assert getattr(PoisonSettings(**given), name) == value
                continue
            with pytest.raises(ValidationError, match=f"the attack {attack} does not read {name}"):
                PoisonSettings(**given)


def test_settings_that_name_nothing_to_poison_are_refused() -> None:
    from pydantic import ValidationError

    assert PoisonSettings(target="x", rates=(0.1,)).rates == (0.0, 0.1), "the clean model is always there"
    for wrong, told in (
        ({"rates": (0.0,)}, "nothing is poisoned"), ({"rates": (0.1, 0.1)}, "twice"),
        ({"rates": (0.05, 0.050000001)}, "the folder rate-0.05"),
        ({"source": "x"}, "both 'x'"), ({"target": None}, "needs a target"), ({"rates": (1.5,)}, "less than"),
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=told):
            PoisonSettings(**{"target": "x", **wrong})


def test_the_silhouette_of_many_points_is_about_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import silhouette_score

    from raymotion.robustness import poison_defences

    monkeypatch.setattr(poison_defences, "MOST_POINTS", 300)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (1490, 3)), rng.normal(4, 1, (10, 3))])
    parts = np.repeat([0, 1], [1490, 10])
    found = poison_defences._silhouette(points, parts, 0)
    assert found == pytest.approx(silhouette_score(points, parts), abs=0.05)
