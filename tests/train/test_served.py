"""The weights that a run serves: averages over the steps, a mix with the start, and the pull to it (`train.served`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import MultiLabelRecipe, OptimiserSettings
from raymotion.models.registry import _kinds
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.study.record import COMPLETE, StudyFolder
from raymotion.study.trial import Trial, predict_test
from raymotion.train.fit import fit
from raymotion.train.loop import BEST, CURRENT, DOMAIN, PREDICTIONS, STATE, Run, train
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, load_recipe
from raymotion.train.served import AVERAGE, START
from raymotion.train.task import Task
from raymotion.train.workers import Workers
from raymotion.vocabulary import VALENCE_3

Write, Student = Callable[..., str], Callable[..., StudentRecipe]
SIZES = {"image": "test_resnet", "image_size": 32, "embedding_size": 8, "text_size": 8, "hidden_size": 8}


class Recipe(MultiLabelRecipe):
    kind: Literal["tower"] = "tower"


class Network(nn.Module):
    """A tower that stands for a pretrained one, with statistics and positions, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("positions", torch.arange(1000))

    def forward(self, values: Tensor, value_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.tower(values))))


class Tower(Kind):
    """Emotions from two numbers."""

    name = "tower"
    recipe = Recipe

    def inputs(self, recipe: Any) -> Any:
        return [ValuesInput(["arousal", "dominance"])]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: Any, training: Any) -> nn.Module:
        return Network()

    def shape(self, network: Any) -> Any:
        return {}

    def restore(self, model: Any, inputs: Any, outputs: Any) -> nn.Module:
        return Network()

    def learning_rate(self, recipe: Any, network: Any, parameter: str) -> float:
        return recipe.optimiser.backbone_lr if parameter.startswith(("tower", "norm")) else recipe.optimiser.lr


@pytest.fixture(autouse=True)
def _tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kinds, "registered", {**_kinds.registered, "tower": Tower})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        a, d = rng.uniform(1, 7, 2)
        rows.append({
            "sample_id": f"s{i}", "group_id": f"g{i}", "source": "t", "split": ("train", "train", "val", "test")[i % 4],
            "arousal": float(a), "dominance": float(d), "labels": [VALENCE_3.labels[int(a > 4) + int(d > 4)]],
        })  # fmt: skip
    path = str(tmp_path_factory.mktemp("served") / "samples.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3, scale=(1.0, 7.0)))
    return path


def recipe_of(samples: str, **groups: Any) -> Recipe:
    """One step an epoch: the weights after each step are those after each epoch."""
    optimiser = {"epochs": 6, "batch_size": 40, "lr": 0.1, "backbone_lr": 0.05, "patience": 99}
    optimiser |= groups.pop("optimiser", {})
    return Recipe.model_validate(
        {"data": {"samples": samples}, "optimiser": optimiser, "workers": 0, "select_by": "last", **groups}
    )


def trained(
    recipe: Any, folder: Path, *, crash_after: int | None = None, resume_from: Path | None = None
) -> list[dict[str, dict[str, Tensor]]]:
    """The weights that each report held, by file; `folder` holds the last report."""
    kept: list[dict[str, dict[str, Tensor]]] = []

    def report(metrics: Mapping[str, Any], saved: str | None) -> None:
        assert saved is not None
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        kept.append({path.name: load_file(path) for path in folder.glob("*.safetensors")})
        if metrics["epoch"] == crash_after:
            raise RuntimeError("power cut")

    task = Task(recipe, prepare_data(recipe), threads=2)
    train(task, report=report, resume_from=None if resume_from is None else str(resume_from))
    return kept


def steps(samples: str, folder: Path, **groups: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The initial weights, and those after each step, of a run that serves its last weights."""
    recipe = recipe_of(samples, **groups)
    start = Run(Task(recipe, prepare_data(recipe))).best_weights
    return start, [kept[CURRENT] for kept in trained(recipe, folder)[:-1]]


def history_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(json.loads((folder / STATE).read_text())["state"])["history"])


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, np.ndarray], last: Mapping[str, Tensor]) -> None:
    assert found.keys() == last.keys()
    for name, value in found.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), expected[name], atol=1e-5, err_msg=name)
        else:
            assert torch.equal(value, last[name]), name


def test_by_default_nothing_is_averaged_and_nothing_more_is_saved(samples: str, tmp_path: Path) -> None:
    reports = trained(recipe_of(samples), tmp_path / "r")
    assert set(reports[0]) == {CURRENT, BEST}
    assert all(torch.equal(reports[2][CURRENT][name], own) for name, own in reports[2][BEST].items())
    assert not {"interpolate", "averaged_steps"} & set(history_of(tmp_path / "r")[-1])


def test_the_exponential_average_of_all_steps(samples: str, tmp_path: Path) -> None:
    _, path = steps(samples, tmp_path / "plain")
    reports = trained(recipe_of(samples, optimiser={"average": "ema", "ema_decay": 0.7}), tmp_path / "ema")
    expected = {name: own.double().numpy() for name, own in path[0].items()}
    for number, weights in enumerate(path):
        if number:
            expected = {name: 0.7 * own + 0.3 * weights[name].double().numpy() for name, own in expected.items()}
        # Training itself is not disturbed, and positions and counters are not averaged.
        assert all(torch.equal(reports[number][CURRENT][name], own) for name, own in weights.items())
        assert_close(reports[number][BEST], expected, weights)
    assert reports[-1][BEST]["positions"].tolist() == list(range(1000))
    assert [line["averaged_steps"] for line in history_of(tmp_path / "ema")] == [1, 2, 3, 4, 5, 6]


def test_the_uniform_average_from_a_share_of_the_steps_on(samples: str, tmp_path: Path) -> None:
    _, path = steps(samples, tmp_path / "plain")
    reports = trained(recipe_of(samples, optimiser={"average": "swa", "swa_from": 0.5}), tmp_path / "swa")
    for number, weights in enumerate(path):
        own = path[3 : number + 1] or [weights]  # steps 4, 5 and 6 of 6
        expected = {name: np.mean([each[name].double().numpy() for each in own], axis=0) for name in weights}
        assert_close(reports[number][BEST], expected, weights)
    assert [line["averaged_steps"] for line in history_of(tmp_path / "swa")] == [0, 0, 0, 1, 2, 3]


def test_a_mix_with_the_start(samples: str, tmp_path: Path) -> None:
    start, path = steps(samples, tmp_path / "plain")
    reports = trained(recipe_of(samples, optimiser={"interpolate": 0.25}), tmp_path / "mixed")
    for number, weights in enumerate(path):
        expected = {name: 0.75 * start[name].double().numpy() + 0.25 * own.double().numpy()
                    for name, own in weights.items()}  # fmt: skip
        assert_close(reports[number][BEST], expected, weights)
        assert all(torch.equal(reports[number][CURRENT][name], own) for name, own in weights.items())
    assert [line["interpolate"] for line in history_of(tmp_path / "mixed")] == [0.25] * 6


def test_of_several_mixes_validation_chooses_in_each_epoch(samples: str, tmp_path: Path) -> None:
    """Each epoch has the score of the best of the runs with one mix each; the mix comes after the average."""
    settings = {"average": "ema", "ema_decay": 0.5, "lr": 1.0, "backbone_lr": 1.0, "epochs": 8, "batch_size": 8}
    shares, alone = [0.0, 0.3, 0.7, 1.0], {}
    for share in shares[1:]:
        trained(recipe_of(samples, optimiser={**settings, "interpolate": share}), tmp_path / "one")
        alone[share] = [line["val_bce"] for line in history_of(tmp_path / "one")]
    recipe = recipe_of(samples, select_by="bce", optimiser={**settings, "interpolate": shares})
    trained(recipe, tmp_path / "all")
    history = history_of(tmp_path / "all")
    for number, line in enumerate(history):
        best = min(alone, key=lambda share: alone[share][number])
        assert line["val_bce"] <= alone[best][number] + 1e-6
        if line["interpolate"]:
            assert line["interpolate"] == best and line["val_bce"] == pytest.approx(alone[best][number], abs=1e-6)
    assert len({line["interpolate"] for line in history}) > 1, "nothing was chosen"
    # What is kept is what was validated.
    task = Task(recipe, prepare_data(recipe))
    network = Network()
    network.load_state_dict(load_file(tmp_path / "all" / BEST))
    values = task.inputs["values"].evidence(task.data.splits["val"])
    measured = task.measure(task.kind.predict(network, {"values": values}, task.outputs))[1]
    assert measured["val_bce"] == pytest.approx(min(line["val_bce"] for line in history), abs=1e-6)


def test_the_pull_to_the_start_is_the_gradient_of_its_penalty(samples: str, tmp_path: Path) -> None:
    """Against the penalty in the loss; two batches to a step, clipped together; pulled weights do not decay."""
    settings = {"l2_sp": 0.5, "kind": "adam", "weight_decay": 0.1, "batch_size": 20, "accumulate": 2, "clip": 0.05,
                "warmup": 0, "schedule": "constant"}  # fmt: skip
    recipe = recipe_of(samples, optimiser=settings)
    reports = trained(recipe, tmp_path / "pulled")
    task = Task(recipe, prepare_data(recipe))
    network = Run(task).model
    start = {name: own.detach().clone() for name, own in network.named_parameters()}
    pulled = [name for name in start if not name.startswith("head")]
    by_hand = torch.optim.Adam([
        {"params": [own for name, own in network.named_parameters() if name in pulled], "lr": 0.05},
        {"params": [network.head.weight], "lr": 0.1, "weight_decay": 0.1},
        {"params": [network.head.bias], "lr": 0.1},
    ])  # fmt: skip
    loader = Run(task).loader
    for epoch in range(6):
        network.train()
        losses = []
        for batch in loader.train(epoch):
            losses.append(task.loss({"emotions": network(**batch.inputs)}, batch))
        gaps = [(own - start[name]).square().sum() for name, own in network.named_parameters() if name in pulled]
        by_hand.zero_grad()
        (sum(losses) / 2 + 0.25 * sum(gaps)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        by_hand.step()
        for name, own in network.named_parameters():
            torch.testing.assert_close(reports[epoch][CURRENT][name], own.detach(), atol=1e-5, rtol=1e-4)
    plain = trained(recipe_of(samples, optimiser={**settings, "l2_sp": 0}), tmp_path / "plain")[-2][CURRENT]
    far, near = (
        sum(float((own[name] - start[name]).norm()) for name in pulled) for own in (plain, reports[-2][CURRENT])
    )
    assert near < 0.8 * far


def test_a_pull_of_nothing_is_refused(samples: str, write_set: Write, student_recipe: Student, tmp_path: Path) -> None:
    text = write_set(tmp_path / "set", pictures=False)
    teacher = load_recipe("teacher-visualbert-small", options={
        "data": {"samples": text}, "model": {"size": "tiny"}, "workers": 0, "optimiser": {"l2_sp": 0.1}
    })  # fmt: skip
    for recipe in (student_recipe(text, optimiser={"l2_sp": 0.1}), teacher):  # from random weights, both
        with pytest.raises(InputError, match=r"^setting optimiser\.l2_sp: none .* is pretrained.*Leave it out"):
            fit(recipe, tmp_path / "out")


def test_rates_that_are_equal_hide_no_pretrained_weights(samples: str) -> None:
    recipe = recipe_of(samples, optimiser={"lr": 0.1, "backbone_lr": 0.1})
    told = {name: Tower().pretrained(recipe, None, name) for name, _ in Network().named_parameters()}
    assert told == {name: not name.startswith("head") for name in told}


@pytest.mark.parametrize("value", [[], 0, [0.5, 1.2], -1])
def test_shares_that_mean_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="interpolate is one number or more"):
        OptimiserSettings.model_validate({"interpolate": value})


ALL = {"average": "swa", "swa_from": 0.3, "interpolate": [0.5, 1.0], "l2_sp": 0.1, "epochs": 4, "batch_size": 8}


@pytest.mark.parametrize("probe", [None, {"strengths": [0.5, 2.0], "coupling": 0.5}])
def test_after_a_crash_in_any_epoch_the_result_is_the_same(samples: str, tmp_path: Path, probe: Any) -> None:
    recipe = recipe_of(samples, select_by="macro_ap", probe=probe, optimiser=ALL)
    whole = trained(recipe, tmp_path / "whole")
    assert {AVERAGE, START} <= set(whole[0]) and set(whole[-1]) == {CURRENT, BEST, PREDICTIONS, DOMAIN}
    _resumes(recipe, whole, tmp_path, epochs=4)


@pytest.mark.slow
def test_a_student_of_pictures_after_a_probe(write_set: Write, student_recipe: Student, tmp_path: Path) -> None:
    """Batch norms, and pictures that are read once for all mixes."""
    recipe = student_recipe(
        write_set(tmp_path / "set", 24), model=SIZES, probe={"strengths": [0.5, 2.0], "labels": "names"},
        optimiser={"average": "ema", "ema_decay": 0.8, "interpolate": [0.3, 0.6, 1.0], "epochs": 3},
    )  # fmt: skip
    whole = trained(recipe, tmp_path / "whole")
    _resumes(recipe, whole, tmp_path, epochs=3)
    statistics = {name for name in whole[0][START] if "running_var" in name}
    assert statistics and all(
        not torch.equal(whole[1][AVERAGE][f"module.{name}"], whole[1][CURRENT][name]) for name in statistics
    )


def _resumes(recipe: Any, whole: list[dict[str, dict[str, Tensor]]], folder: Path, *, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        with pytest.raises(RuntimeError, match="power cut"):
            trained(recipe, folder / "first", crash_after=epoch)
        torch.manual_seed(99)  # what the process did before must not matter
        resumed = trained(recipe, folder / "second", resume_from=folder / "first")
        for expected, found in zip(whole[epoch:], resumed, strict=True):
            assert expected.keys() == found.keys()
            for name, weights in expected.items():
                assert all(torch.equal(own, found[name][key]) for key, own in weights.items()), (epoch, name)
        assert history_of(folder / "second") == history_of(folder / "whole")


def test_a_damaged_average_is_not_resumed_from(samples: str, tmp_path: Path) -> None:
    recipe = recipe_of(samples, select_by="macro_ap", optimiser=ALL)
    with pytest.raises(RuntimeError, match="power cut"):
        trained(recipe, tmp_path / "first", crash_after=2)
    whole = (tmp_path / "first" / AVERAGE).read_bytes()
    (tmp_path / "first" / AVERAGE).write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(InputError, match=AVERAGE):
        trained(recipe, tmp_path / "second", resume_from=tmp_path / "first")


def test_a_search_serves_them_too(samples: str, tmp_path: Path) -> None:
    recipe = recipe_of(samples, probe={"strengths": [0.1, 10]}, select_by="macro_ap", optimiser=ALL)
    data = prepare_data(recipe)
    spec = {"key": "k", "config": {}, "seeds": [0, 1], "stage": "s", "study": str(tmp_path),
            "recipe": recipe.model_dump(mode="json")}  # fmt: skip
    trial = Trial(spec, Tower(), data.without_test())
    while not trial.finished:
        trial.step()
    assert trial.record.status == COMPLETE, trial.record.error
    task = Task(recipe, data)
    test = predict_test(StudyFolder(tmp_path), "k", recipe, [0, 1], data, task.outputs[0])
    for seed, found in enumerate(test):
        alone = fit(recipe.model_copy(update={"seed": seed}), tmp_path / f"alone{seed}").info
        metrics = task.outputs[0].metrics(data.targets["emotions"], data.splits["test"], found)
        assert alone.test is not None
        assert metrics["bce"] == pytest.approx(alone.test["metrics"]["bce"]["value"], abs=1e-5)


def test_the_command_and_the_card_say_what_is_served(
    write_set: Write, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    (tmp_path / "r.yaml").write_text(
        "kind: teacher-visualbert\nmodel: {size: tiny}\nworkers: 0\nuse_gpu: false\nselect_by: last\n"
        "optimiser: {epochs: 2, batch_size: 8, average: ema, ema_decay: 0.9, interpolate: 0.25}\n"
    )
    samples = write_set(tmp_path / "set", pictures=False)
    done = runner("train", tmp_path / "r.yaml", "--samples", samples, "--out", tmp_path / "m", "--progress", "lines")
    assert done.code == 0, done.err
    said = "0.25 x the average over 6 steps (exponential, decay 0.9) + 0.75 x those before fine-tuning"
    assert f"weights: {said}" in done.out and f"- Weights: {said}" in (tmp_path / "m/README.md").read_text()
    assert "interpolate 0.25 (best: epoch 2)" in done.err
    history = read_checkpoint_info(tmp_path / "m").training["history"]
    assert [(line["interpolate"], line["averaged_steps"]) for line in history] == [(0.25, 3), (0.25, 6)]
    refused = runner("train", tmp_path / "r.yaml", "--samples", samples, "--out", tmp_path / "n",
                     "--set", "optimiser.interpolate=[0.5, 2]")  # fmt: skip
    assert refused.code == 2 and "interpolate is one number or more from 0 (the start) to 1" in refused.err
    assert len(refused.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_workers_serve_one_average(samples: str, tmp_path: Path) -> None:
    """Each rank averages what it has: all must have the same, also after a resume."""
    recipe = recipe_of(samples, select_by="macro_ap", probe={}, optimiser={**ALL, "epochs": 3})
    prepare_data(recipe).save(str(tmp_path / "data"))
    for name in ("whole", "first", "second"):
        torch.multiprocessing.start_processes(
            _ddp_worker, args=(recipe.model_dump(mode="json"), str(tmp_path), name), nprocs=2, start_method="spawn"
        )
    ranks = [load_file(tmp_path / f"whole-average{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(own, ranks[1][name]) for name, own in ranks[0].items())
    for name in (BEST, PREDICTIONS):
        whole, second = (load_file(tmp_path / each / name) for each in ("whole", "second"))
        assert whole and all(torch.equal(own, second[key]) for key, own in whole.items()), name
    assert history_of(tmp_path / "whole") == history_of(tmp_path / "second")


def _ddp_worker(rank: int, settings: dict[str, Any], folder: str, name: str) -> None:
    """`first` stops after the probe, and `second` goes on from there."""
    from safetensors.torch import save_file

    from raymotion.train.served import weights_of

    torch.set_num_threads(1)
    meeting = f"file://{folder}/{name}-rendezvous"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    _kinds.registered = {**_kinds.registered, "tower": Tower}
    recipe = Recipe.model_validate(settings)
    task = Task(recipe, TrainingSet.load(f"{folder}/data", kind_of(recipe).inputs(recipe)))

    def wrap(model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    workers = Workers(rank, 2, wrap=wrap)
    run = Run(task, workers=workers, resume_from=f"{folder}/first" if name == "second" else None)
    while not run.done and not (name == "first" and run.state.epoch == 1):
        run.step()
    if name != "first":
        save_file(weights_of(run.served.networks(run.model)[1]), f"{folder}/{name}-average{rank}.safetensors")
    predictions = None if name == "first" else {"val": run.predict("val")}
    if rank == 0:
        Path(folder, name).mkdir()
        run.save(f"{folder}/{name}", predictions)
    torch.distributed.destroy_process_group()
