"""The training loop: a plain function that runs under Ray Train, under Ray Tune, or under neither.

Whatever drives it hands in `report`, which takes the metrics of an epoch and a folder to keep. Each epoch draws all its
randomness from (seed, epoch, rank), so a run that goes on from the checkpoint of epoch k gives the same weights as
one that was never interrupted; no state of a random generator has to be saved.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raymotion.learning import losses
from raymotion.learning.average_precision import average_precision
from raymotion.learning.metrics import bce as binary_cross_entropy
from raymotion.models.visualbert import TeacherConfig, VisualBertTeacher, pad, predict_tokens
from raymotion.train.data import TrainingData
from raymotion.train.recipe import TrainRecipe

# (metrics, folder): every rank calls it once per epoch; only rank 0 has a folder. The folder is gone when it returns.
Report = Callable[[Mapping[str, Any], str | None], None]
CURRENT, BEST, STATE, OPTIMISER, PROBABILITIES = (
    "current.safetensors", "best.safetensors", "state.json", "optimiser.pt", "probabilities.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Workers:
    """This process among those that train one model together. The default is alone."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    # Stands beside each epoch in the history: which process computed it, of which command.
    attempt: str = ""
    # ray.train.torch.prepare_model, or DistributedDataParallel.
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


@dataclass
class State:
    """Where a run stands at the end of an epoch."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    teacher: dict[str, Any] = field(default_factory=dict)


def train_teacher(
    recipe: TrainRecipe,
    data: TrainingData,
    *,
    report: Report,
    resume_from: str | None = None,
    workers: Workers = Workers(),
) -> State:
    """Trains until the last epoch, or until validation has not improved for `patience` epochs.

    After the last epoch it reports once more, with the probabilities of the best epoch for validation and test. The
    test split is predicted then and never before.

    Args:
        resume_from: local folder of an earlier report of the same run.
    """
    torch.manual_seed(recipe.seed)
    state = State()
    model = build_model(recipe, data)
    if resume_from:
        state = State(**json.loads(Path(resume_from, STATE).read_text()))
        model.load_state_dict(load_file(Path(resume_from, CURRENT)))
    if state.finished:
        return state
    state.teacher = model.config.model_dump(mode="json")
    model.to(workers.device)
    optimiser = _optimiser(model, recipe)
    best_weights = _weights(model)
    if resume_from:
        optimiser.load_state_dict(torch.load(Path(resume_from, OPTIMISER), weights_only=True, map_location="cpu"))
        best_weights = load_file(Path(resume_from, BEST))
    wrapped = workers.wrap(model)
    steps = _steps_per_epoch(recipe, data, workers)
    loss_weights = losses.class_weights(
        data.prior(soft=recipe.data.soft_targets).tolist(), recipe.class_weights, samples=len(data.splits["train"])
    ).to(workers.device)

    while state.epoch < recipe.optimiser.epochs and state.epoch - state.best_epoch < recipe.optimiser.patience:
        # DDP averages gradients, so the loss of each rank is all it needs; the seeds differ by rank for dropout's sake.
        torch.manual_seed(_seed(recipe.seed, state.epoch, workers.rank))
        train_loss = _train_epoch(wrapped, model, optimiser, recipe, data, loss_weights, state.epoch, steps, workers)
        state.epoch += 1
        score = _validate(model, recipe, data, workers)
        if score["loss"] < state.best - 1e-7:
            state.best, state.best_epoch, best_weights = score["loss"], state.epoch, _weights(model)
        # The loss that is minimised, with class weights and smoothing: not to be compared with the BCE of validation.
        measured = {"epoch": state.epoch, "train_loss": train_loss, **score["metrics"]}
        state.history.append({**measured, "attempt": workers.attempt})
        _save_and_report(report, state, model, optimiser, best_weights, workers)

    model.load_state_dict(best_weights)
    state.finished = True
    predictions = {name: _predict_split(model, data, name, workers) for name in ("val", "test")}
    _save_and_report(report, state, model, optimiser, best_weights, workers, predictions=predictions)
    return state


def build_model(recipe: TrainRecipe, data: TrainingData) -> VisualBertTeacher:
    """The untrained teacher of a recipe. Its answer before the first step is the class prior."""
    sizes: dict[str, Any] = {"vocab_size": len(data.tokenizer)}
    if data.features is not None:
        sizes["visual_dim"] = data.features.dim
    config = TeacherConfig.model_validate({"visual_dim": 1, **recipe.model, **sizes})
    labels = len(data.vocabulary)
    model = (
        VisualBertTeacher.from_pretrained(recipe.init, config, labels)
        if recipe.init
        else VisualBertTeacher(config, labels)
    )
    # Otherwise the first epochs go into learning that most emotions are rare.
    prior = torch.from_numpy(data.prior(soft=recipe.data.soft_targets)).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        model.head.bias.copy_(torch.logit(prior))
    return model


def _optimiser(model: VisualBertTeacher, recipe: TrainRecipe) -> torch.optim.AdamW:
    """Four groups: head and backbone have their own rates, and neither biases nor norms decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    settings = recipe.optimiser
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": settings.backbone_lr if backbone else settings.lr,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ],
        lr=settings.lr,
    )


def _steps_per_epoch(recipe: TrainRecipe, data: TrainingData, workers: Workers) -> int:
    share = math.ceil(len(data.splits["train"]) / workers.world)
    return math.ceil(share / max(1, recipe.optimiser.batch_size // workers.world))


def schedule(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate: linear from 0 over the share `warmup` of the steps, then half a cosine down to 0."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def epoch_rows(rows: np.ndarray, *, seed: int, epoch: int, rank: int, world: int) -> np.ndarray:
    """This worker's rows in this epoch: one shuffle for all, dealt out in turn.

    All get equally many, since a worker that stops early would leave the others waiting; so up to `world - 1` rows are
    seen twice.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    share = math.ceil(len(order) / world)
    return np.resize(order, share * world)[rank::world]


def _train_epoch(
    wrapped: nn.Module,
    model: VisualBertTeacher,
    optimiser: torch.optim.Optimizer,
    recipe: TrainRecipe,
    data: TrainingData,
    loss_weights: Tensor,
    epoch: int,
    steps: int,
    workers: Workers,
) -> float:
    settings = recipe.optimiser
    wrapped.train()
    rows = epoch_rows(data.splits["train"], seed=recipe.seed, epoch=epoch, rank=workers.rank, world=workers.world)
    rng = np.random.default_rng([recipe.seed, epoch, workers.rank])
    size = max(1, settings.batch_size // workers.world)
    answers = data.soft if recipe.data.soft_targets else data.hard
    total = 0.0
    for number, start in enumerate(range(0, len(rows), size)):
        factor = schedule(epoch * steps + number, settings.epochs * steps, settings.warmup)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        batch = rows[start : start + size]
        inputs = _training_batch(data, batch, recipe, rng, workers.device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=workers.device.startswith("cuda")):
            logits = wrapped(*inputs)
        loss = losses.multilabel_bce(
            logits,
            torch.from_numpy(answers[batch]).to(workers.device),
            class_weights=loss_weights,
            label_smoothing=settings.label_smoothing,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        total += float(loss.detach()) * len(batch)
    return float(np.mean(workers.gather(total / len(rows))))


def _training_batch(
    data: TrainingData, rows: np.ndarray, recipe: TrainRecipe, rng: np.random.Generator, device: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One caption of each sample, drawn anew in every epoch, and its regions; now and then one of them is withheld."""
    tokenizer, settings = data.tokenizer, recipe.data
    chosen = [data.tokens[rng.integers(data.first[row], data.first[row + 1])] for row in rows]
    regions, mask = data.regions_of(rows)
    if regions is not None and mask is not None:
        draw = rng.random(len(rows))
        both = mask.any(axis=1) & data.has_caption[rows]
        mask = mask & ~(both & (draw < settings.region_dropout))[:, None]
        blank = np.array([tokenizer.cls_token_id, tokenizer.sep_token_id], dtype=np.int32)
        withheld = both & (draw >= 1 - settings.caption_dropout)
        chosen = [blank if hide else tokens for tokens, hide in zip(chosen, withheld, strict=True)]
    ids, attention = pad(cast(list[list[int]], chosen), pad_id=tokenizer.pad_token_id)
    if recipe.optimiser.word_dropout:
        word = (attention == 1) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
        ids[word & (rng.random(ids.shape) < recipe.optimiser.word_dropout)] = tokenizer.unk_token_id
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(attention).to(device),
        None if regions is None else torch.from_numpy(regions).to(device),
        None if mask is None else torch.from_numpy(mask).to(device),
    )


def _validate(model: VisualBertTeacher, recipe: TrainRecipe, data: TrainingData, workers: Workers) -> dict[str, Any]:
    """`loss`, lower is better, and the metrics for the record: over every validation sample, the same on every rank."""
    probabilities = _predict_split(model, data, "val", workers)
    hard = data.hard[data.splits["val"]]
    answers = data.soft[data.splits["val"]] if recipe.data.soft_targets else hard
    bce = binary_cross_entropy(answers, probabilities)
    with_positives = hard.sum(axis=0) > 0
    macro_ap = float(
        np.mean([average_precision(hard[:, j], probabilities[:, j]) for j in np.flatnonzero(with_positives)])
    )
    return {
        "loss": bce if recipe.select_by == "bce" else -macro_ap,
        "metrics": {"val_bce": bce, "val_macro_ap": macro_ap},
    }


def _predict_split(model: VisualBertTeacher, data: TrainingData, split: str, workers: Workers) -> np.ndarray:
    """Probabilities (rows of the split, L), the rows shared out among the workers and put together again on each."""
    rows = data.splits[split]
    result = np.zeros((len(rows), len(data.vocabulary)), dtype=np.float32)
    parts = workers.gather(predict_rows(model, data, rows[workers.rank :: workers.world]))
    for rank, part in enumerate(parts):
        result[rank :: workers.world] = part
    return result


def predict_rows(model: VisualBertTeacher, data: TrainingData, rows: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Probabilities (len(rows), L) of samples by position; the regions of `chunk` samples are in memory at a time."""
    parts = [np.zeros((0, len(data.vocabulary)), dtype=np.float32)]
    for start in range(0, len(rows), chunk):
        some = rows[start : start + chunk]
        tokens, owners = data.captions_of(some)
        regions, mask = data.regions_of(some)
        parts.append(
            predict_tokens(
                model,
                cast(list[list[int]], tokens),
                owners,
                len(some),
                regions,
                mask,
                pad_id=data.tokenizer.pad_token_id,
            )
        )
    return np.concatenate(parts)


def _save_and_report(
    report: Report,
    state: State,
    model: VisualBertTeacher,
    optimiser: torch.optim.Optimizer,
    best_weights: dict[str, Tensor],
    workers: Workers,
    *,
    predictions: dict[str, np.ndarray] | None = None,
) -> None:
    measured = {name: value for name, value in state.history[-1].items() if name != "attempt"}
    latest = {"best": state.best, "best_epoch": state.best_epoch, **measured}
    if workers.rank != 0:
        report(latest, None)
        return
    with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
        save_file(best_weights, Path(folder, BEST))
        if predictions is None:
            save_file(_weights(model), Path(folder, CURRENT))
            torch.save(optimiser.state_dict(), Path(folder, OPTIMISER))
        else:
            # The run is over: nothing goes on from here, so current weights and optimiser are not kept.
            save_file(best_weights, Path(folder, CURRENT))
            save_file({name: torch.from_numpy(p) for name, p in predictions.items()}, Path(folder, PROBABILITIES))
        Path(folder, STATE).write_text(json.dumps(asdict(state)))
        report(latest, folder)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
