"""The training loop: a plain function that runs under Ray Train, under Ray Tune, or under neither.

Whatever drives it hands in `report`, which takes the metrics of an epoch and a folder to keep. Each epoch draws all its
randomness from (seed, epoch, rank), so a run that goes on from the checkpoint of epoch k gives the same weights as
one that was never interrupted; no state of a random generator has to be saved.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raymotion.learning.average_precision import average_precision
from raymotion.learning.metrics import bce as binary_cross_entropy
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

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the statistics of rank 0's norms, which are those that a checkpoint keeps.

        DDP does this before each forward pass in training, after which each rank goes on with its own.
        """
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

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
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Some samples on the device: what the model's forward takes, and what its logits (n, L) are compared with."""

    inputs: tuple[Tensor | None, ...]
    answers: Tensor
    hard: Tensor | None = None
    weights: Tensor | None = None


class Feed(Protocol):
    """One worker's samples, epoch after epoch."""

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Rows whose picture could not be read so far, which the model did not see, and why."""

    def train(self, epoch: int) -> Iterator[Batch]:
        """This worker's batches of the epoch: as many on every worker."""

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        """Probabilities (n, L) of this worker's rows of the split: every `world`-th one, from `rank` on."""

    def close(self) -> None: ...


class Task(Protocol):
    """What a kind of model brings to the loop."""

    @property
    def recipe(self) -> TrainRecipe: ...

    @property
    def data(self) -> TrainingData: ...

    @property
    def samples_per_epoch(self) -> int: ...

    def build(self) -> nn.Module:
        """The untrained model."""

    def shape(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint's config.json says of it."""

    def restore(self, shape: Mapping[str, Any]) -> nn.Module:
        """A model of this shape, its weights yet to be loaded."""

    def learning_rate(self, name: str) -> float:
        """Of the parameter of this name."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor: ...

    def feed(self, workers: Workers, *, first_epoch: int) -> Feed: ...


def train(task: Task, *, report: Report, resume_from: str | None = None, workers: Workers = Workers()) -> State:
    """Trains until the last epoch, or until validation has not improved for `patience` epochs.

    After the last epoch it reports once more, with the probabilities of the best epoch for validation and test. The
    test split is predicted then and never before.

    Args:
        resume_from: local folder of an earlier report of the same run.
    """
    recipe = task.recipe
    torch.manual_seed(recipe.seed)
    state = State()
    model = task.build()
    if resume_from:
        state = State(**json.loads(Path(resume_from, STATE).read_text()))
        model.load_state_dict(load_file(Path(resume_from, CURRENT)))
    if state.finished:
        return state
    state.model = task.shape(model)
    model.to(workers.device)
    optimiser = _optimiser(model, task)
    best_weights = _weights(model)
    if resume_from:
        optimiser.load_state_dict(torch.load(Path(resume_from, OPTIMISER), weights_only=True, map_location="cpu"))
        best_weights = load_file(Path(resume_from, BEST))
    wrapped = workers.wrap(model)

    with contextlib.closing(task.feed(workers, first_epoch=state.epoch)) as feed:
        while state.epoch < recipe.optimiser.epochs and state.epoch - state.best_epoch < recipe.optimiser.patience:
            # DDP averages gradients, so the loss of each rank is all it needs; seeds differ by rank for dropout's sake.
            torch.manual_seed(_seed(recipe.seed, state.epoch, workers.rank))
            train_loss = _train_epoch(wrapped, model, optimiser, task, feed, state.epoch, workers)
            workers.share_buffers(model)
            state.epoch += 1
            # Rank 0's judgement for all: a last digit must not let one stop where the others go on.
            score = workers.gather(_validate(model, task, feed, workers))[0]
            if score["loss"] < state.best - 1e-7 or recipe.select_by == "last":
                state.best, state.best_epoch, best_weights = score["loss"], state.epoch, _weights(model)
            # The loss that is minimised, with class weights and smoothing: not to be compared with validation's BCE.
            measured = {"epoch": state.epoch, "train_loss": train_loss, **score["metrics"]}
            if unreadable := len(set().union(*workers.gather(set(feed.unreadable)))):
                measured["unreadable_images"] = unreadable
            state.history.append({**measured, "attempt": workers.attempt})
            _save_and_report(report, state, model, optimiser, best_weights, workers)

        model.load_state_dict(best_weights)
        state.finished = True
        predictions = {name: _predict_split(model, task, feed, name, workers) for name in ("val", "test")}
    _save_and_report(report, state, model, optimiser, best_weights, workers, predictions=predictions)
    return state


def set_prior(head: nn.Linear, prior: np.ndarray) -> None:
    """Makes the class prior a model's answer before the first step: else epochs go into learning that most are rare."""
    rates = torch.from_numpy(prior).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        head.bias.copy_(torch.logit(rates))


def _optimiser(model: nn.Module, task: Task) -> torch.optim.Optimizer:
    """A group for each learning rate, and within it one for what decays: neither biases nor norms do."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((task.learning_rate(name), parameter.ndim > 1), []).append(parameter)
    settings = task.recipe.optimiser
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": parameters, "base_lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
            for (rate, decays), parameters in groups.items()
        ],
        lr=settings.lr,
    )


def steps_per_epoch(recipe: TrainRecipe, samples: int, world: int) -> int:
    """Batches that each of `world` workers sees in an epoch of `samples`."""
    return math.ceil(math.ceil(samples / world) / batch_rows(recipe, world))


def batch_rows(recipe: TrainRecipe, world: int) -> int:
    """One worker's share of the recipe's batch."""
    return max(1, recipe.optimiser.batch_size // world)


def schedule(step: int, total: int, warmup: float, kind: str = "cosine") -> float:
    """Factor on the learning rate: linear from 0 over the share `warmup` of the steps, then half a cosine down to 0.

    `constant`: 1 in place of the cosine.
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if kind == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def epoch_rows(
    rows: np.ndarray, *, seed: int, epoch: int, rank: int, world: int, samples: int | None = None
) -> np.ndarray:
    """This worker's rows in this epoch: one shuffle for all, dealt out in turn.

    All get equally many, since a worker that stops early would leave the others waiting; so up to `world - 1` rows are
    seen twice.

    Args:
        samples: of an epoch, if that is not all rows: then epochs are cut from one shuffle after the other.
    """
    samples = len(rows) if samples is None else samples
    first, last = epoch * samples // len(rows), ((epoch + 1) * samples - 1) // len(rows)
    shuffles = [np.random.default_rng([seed, number]).permutation(rows) for number in range(first, last + 1)]
    start = epoch * samples - first * len(rows)
    order = np.concatenate(shuffles)[start : start + samples]
    share = math.ceil(len(order) / world)
    return np.resize(order, share * world)[rank::world]


def _train_epoch(
    wrapped: nn.Module,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: Task,
    feed: Feed,
    epoch: int,
    workers: Workers,
) -> float:
    settings = task.recipe.optimiser
    wrapped.train()
    steps = steps_per_epoch(task.recipe, task.samples_per_epoch, workers.world)
    total, seen = 0.0, 0
    for number, batch in enumerate(feed.train(epoch)):
        factor = schedule(epoch * steps + number, settings.epochs * steps, settings.warmup, settings.schedule)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=workers.device.startswith("cuda")):
            logits = wrapped(*batch.inputs)
        loss = task.loss(logits, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        total += float(loss.detach()) * len(batch.answers)
        seen += len(batch.answers)
    return float(np.mean(workers.gather(total / max(1, seen))))


def _validate(model: nn.Module, task: Task, feed: Feed, workers: Workers) -> dict[str, Any]:
    """`loss`, lower is better, and the metrics for the record: over every validation sample, the same on every rank."""
    recipe, data = task.recipe, task.data
    probabilities = _predict_split(model, task, feed, "val", workers)
    hard = data.hard[data.splits["val"]]
    answers = data.soft[data.splits["val"]] if recipe.data.soft_targets else hard
    bce = binary_cross_entropy(answers, probabilities)
    with_positives = hard.sum(axis=0) > 0
    macro_ap = float(
        np.mean([average_precision(hard[:, j], probabilities[:, j]) for j in np.flatnonzero(with_positives)])
    )
    return {
        "loss": -macro_ap if recipe.select_by == "macro_ap" else bce,
        "metrics": {"val_bce": bce, "val_macro_ap": macro_ap},
    }


def _predict_split(model: nn.Module, task: Task, feed: Feed, split: str, workers: Workers) -> np.ndarray:
    """Probabilities (rows of the split, L), the rows shared out among the workers and put together again on each."""
    result = np.zeros((len(task.data.splits[split]), len(task.data.vocabulary)), dtype=np.float32)
    for rank, part in enumerate(workers.gather(feed.predict(model, split))):
        result[rank :: workers.world] = part
    return result


def _save_and_report(
    report: Report,
    state: State,
    model: nn.Module,
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
