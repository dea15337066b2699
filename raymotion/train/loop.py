"""The training loop: a plain function that runs under Ray Train, under Ray Tune, or under neither.

The caller passes `report`, which receives the metrics of an epoch and a folder to keep. Each epoch draws all its
randomness from (seed, epoch, rank), so a run resumed from the checkpoint of epoch k ends with the same weights as an
uninterrupted one, and no generator state has to be saved.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raymotion import records, storage
from raymotion.errors import Diverged, InputError
from raymotion.learning.domain import DomainSample
from raymotion.models.domain_sample import to_bytes
from raymotion.models.kind import place_of
from raymotion.models.outputs.base import forward
from raymotion.train.batches import BatchLoader
from raymotion.train.domain import sample_training
from raymotion.train.probe import fit_probe
from raymotion.train.schedule import epochs_without_gain, lowered, schedule, steps_per_epoch
from raymotion.train.served import Served, weights_of
from raymotion.train.task import LAST, Task
from raymotion.train.workers import ALONE, Workers

# (metrics, folder): called once per epoch by every rank; only rank 0 has a folder, which is removed afterwards.
Report = Callable[[Mapping[str, Any], str | None], None]
CURRENT, BEST, STATE, OPTIMISER, PREDICTIONS, DOMAIN = (
    "current.safetensors", "best.safetensors", "state.json", "optimiser.pt", "predictions.safetensors",
    "domain.safetensors",
)  # fmt: skip
# Reported with the metrics of an epoch; see `Run.speed`.
SPEED = "samples_per_second"
# A smaller difference of two scores is rounding.
LEAST_GAIN = 1e-7
# Columns of the history where the settings of these names are used: the share of the training in the weights that were
# chosen, and the number of steps in their average.
INTERPOLATE, AVERAGED_STEPS = "interpolate", "averaged_steps"


@dataclass
class State:
    """The state of a run at the end of an epoch."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)


class Run:
    """One training run, executed epoch by epoch: `train` runs one to its end, a search runs many side by side.

    Args:
        resume_from: local folder of an earlier `save` of the same run.

    Attributes:
        best_weights: of the best epoch so far.
        best_predictions: by output, (rows of val, width) of that epoch; None before the first epoch and after a resume.
        speed: samples a second of all workers in the last epoch, without validation; None before the first epoch. No
            part of the history, which is the same for the same seed.
    """

    def __init__(self, task: Task, *, workers: Workers = ALONE, resume_from: str | None = None) -> None:
        self.task, self.workers = task, workers
        torch.manual_seed(task.recipe.seed)
        self.state = State()
        self.model = task.build()
        if resume_from:
            self.state = State(**read_state(resume_from))
            self.model.load_state_dict(load_file(Path(resume_from, CURRENT)))
        self.best_predictions: dict[str, np.ndarray] | None = None
        self.speed: float | None = None
        if self.state.finished:
            return
        self.state.model = task.shape_of(self.model)
        if not resume_from and workers.rank == 0:
            task.rehearse(self.model, self.state.model)
        self.model.to(workers.device)
        self.served = Served(self.model, task)
        self.optimiser = _optimiser(self.model, task, pulled=self.served.pulled)
        self.best_weights = weights_of(self.model)
        if resume_from:
            saved = torch.load(Path(resume_from, OPTIMISER), weights_only=True, map_location="cpu")
            self.optimiser.load_state_dict(saved)
            self.best_weights = load_file(Path(resume_from, BEST))
            self.served.load(resume_from, workers.device)
        self.wrapped = workers.wrap(self.model)
        if not resume_from:  # here, because DDP gives every rank the weights of rank 0
            self.served.begin(self.model)
        self.loader = BatchLoader(task, workers, first_epoch=self.state.epoch)

    @property
    def done(self) -> bool:
        """Whether the last epoch is over, or validation has not improved for `patience` epochs."""
        settings = self.task.recipe.optimiser
        waited = epochs_without_gain(_scores(self.task, self.state), max(settings.min_delta, LEAST_GAIN))
        late = waited >= settings.patience and self.task.recipe.select_by != LAST
        return self.state.finished or self.state.epoch >= settings.epochs or late

    def step(self) -> dict[str, Any]:
        """Trains for one epoch, validates, and returns the epoch's metrics.

        Raises:
            Diverged: the loss, a gradient, a weight or a validation prediction is no longer finite.
        """
        task, workers, state = self.task, self.workers, self.state
        recipe = task.recipe
        # DDP averages gradients, so each rank computes only its own loss. Seeds differ by rank because of dropout.
        torch.manual_seed(_seed(recipe.seed, state.epoch, workers.rank))
        probing = recipe.probe is not None and state.epoch == 0
        if probing:
            trained = self._probe()
        else:
            trained, self.speed = _train_epoch(
                self.wrapped, self.model, self.optimiser, self.served, task, self.loader, state, workers
            )
        for network in self.served.networks(self.model):
            workers.share_buffers(network)
        state.epoch += 1
        wrong = _not_finite(self.model)
        if wrong:
            raise _diverged(f"weight {wrong} holds NaN or infinity at the end of epoch {state.epoch}", task, state)
        with self.served.candidates(self.model, mixed=not probing) as candidates:
            predicted = _predict_split([load for _, load in candidates], task, self.loader, "val", workers)
            if not all(np.isfinite(values).all() for each in predicted for values in each.values()):
                told = f"the model's validation output is NaN or infinite after epoch {state.epoch}"
                raise _diverged(told, task, state)
            # All ranks use rank 0's scores: a rounding difference must not stop one while the others continue.
            scored = workers.gather([task.measure(each) for each in predicted])[0]
            chosen = min(range(len(scored)), key=lambda number: scored[number][0])
            (share, load), (score, figures) = candidates[chosen], scored[chosen]
            if score < state.best - LEAST_GAIN or recipe.select_by == LAST:
                state.best, state.best_epoch = score, state.epoch
                self.best_weights, self.best_predictions = weights_of(load()), predicted[chosen]
        # The minimised loss, with class weights and smoothing; not comparable with the validation BCE.
        measured = {"epoch": state.epoch, **trained, **figures}
        if recipe.optimiser.interpolate != (1.0,) and not probing:
            measured[INTERPOLATE] = share
        if self.served.averaged_steps is not None:
            measured[AVERAGED_STEPS] = self.served.averaged_steps
        if unreadable := len(set().union(*workers.gather(set(self.loader.unreadable)))):
            measured["unreadable_images"] = unreadable
        if kept := len(set().union(*workers.gather(set(self.loader.kept)))):
            measured["damaged_images_kept"] = kept
        state.history.append({**measured, "attempt": workers.attempt})
        return measured

    def _probe(self) -> dict[str, float]:
        """Fits the last layer in place of the first epoch; returns the metrics of `_train_epoch`."""
        started = time.monotonic()
        loss, samples = fit_probe(self.model, self.task, self.loader, self.workers)
        self.served.begin(self.model)
        self.speed = samples / max(1e-9, time.monotonic() - started)
        return {"train_loss": loss, "learning_rate": 0.0}

    def predict(self, split: str) -> dict[str, np.ndarray]:
        """Returns decoded values (rows of the split, width) by output, with the weights of the best epoch.

        The model keeps these weights.
        """
        self.model.load_state_dict(self.best_weights)
        return _predict_split([lambda: self.model], self.task, self.loader, split, self.workers)[0]

    def save(
        self,
        folder: str,
        predictions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        domain: DomainSample | None = None,
    ) -> None:
        """Writes the files that a resume needs; with `predictions`, the final result instead."""
        save_file(self.best_weights, Path(folder, BEST))
        if predictions is None:
            save_file(weights_of(self.model), Path(folder, CURRENT))
            self.served.save(folder)
            torch.save(self.optimiser.state_dict(), Path(folder, OPTIMISER))
        else:
            # The run is over and is not resumed, so current weights and optimiser are not kept.
            save_file(self.best_weights, Path(folder, CURRENT))
            flat = {f"{split} {name}": torch.from_numpy(values) for split, own in predictions.items()
                    for name, values in own.items()}  # fmt: skip
            save_file(flat, Path(folder, PREDICTIONS))
            if domain is not None:
                Path(folder, DOMAIN).write_bytes(to_bytes(domain))
        # Written last, with the digests of the other files, so that a resume detects damage.
        files = {path.name: storage.sha256_file(path) for path in sorted(Path(folder).iterdir())}
        records.write_record(Path(folder, STATE), {"state": json.dumps(asdict(self.state)), "files": files})

    def close(self) -> None:
        """Stops the loader's processes if training has not finished."""
        if not self.state.finished:
            self.loader.close()


def read_state(folder: str) -> dict[str, Any]:
    """Returns the `State` of a saved run as a mapping, after checking the digests of the run's other files.

    Raises:
        Damaged: a file differs from what was written.
    """
    remedy = "The run cannot continue from here: remove its folder and run the same command again."
    record = records.read_record(Path(folder, STATE), needs_seal=True, remedy=remedy)
    for name, sha256 in record["files"].items():
        records.read_bytes(Path(folder, name), sha256, remedy=remedy)
    return dict(json.loads(record["state"]))


def train(task: Task, *, report: Report, resume_from: str | None = None, workers: Workers = ALONE) -> State:
    """Trains until the last epoch, or until validation has not improved for `patience` epochs.

    At the end it reports once more, with the best epoch's predictions for validation and test. The test split is
    predicted only then.

    Args:
        resume_from: local folder of an earlier report of the same run.
    """
    run = Run(task, workers=workers, resume_from=resume_from)
    if run.state.finished:
        return run.state
    with contextlib.closing(run.loader):
        while not run.done:
            run.step()
            _report(report, run)
        predictions = {name: run.predict(name) for name in ("val", "test")}
        domain = sample_training(run.model, task, run.loader, workers)
        run.state.finished = True
    _report(report, run, predictions=predictions, domain=domain)
    return run.state


def read_predictions(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """Reads the predictions of a finished run: split -> output -> decoded values (rows of the split, width)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in load_file(Path(folder, PREDICTIONS)).items():
        split, _, output = name.partition(" ")
        found.setdefault(split, {})[output] = tensor.numpy()
    return found


def _optimiser(model: nn.Module, task: Task, *, pulled: frozenset[str] = frozenset()) -> torch.optim.Optimizer:
    """Builds the optimiser: one parameter group per learning rate and weight decay.

    Biases, norms, and the weights that `l2_sp` pulls to the start do not decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in pulled
            groups.setdefault((task.learning_rate(model, name), decays), []).append(parameter)
    if not groups:
        raise InputError(
            f"{place_of(type(model))} has no weight that can be trained", remedy="Leave some with requires_grad."
        )
    settings = task.recipe.optimiser
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": parameters, "base_lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
            for (rate, decays), parameters in groups.items()
        ],
        lr=settings.lr,
        fused=True,
    )


def _train_epoch(
    wrapped: nn.Module,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    served: Served,
    task: Task,
    loader: BatchLoader,
    state: State,
    workers: Workers,
) -> tuple[dict[str, float], float]:
    """Trains for one epoch.

    Returns:
        the mean loss and the learning rate of new weights in the last step; the samples a second of all workers.
    """
    settings, epoch = task.recipe.optimiser, state.epoch
    wrapped.train()
    optimiser.zero_grad(set_to_none=True)
    steps, probed = steps_per_epoch(task.recipe, task.samples_per_epoch, workers.world), task.recipe.probe is not None
    before, of_all = (epoch - probed) * steps, (settings.epochs - probed) * steps
    total, seen, started = 0.0, 0, time.monotonic()
    falls, scores = settings.schedule == "plateau", _scores(task, state)
    rates = [
        lowered(rate, scores, settings.plateau) if falls else rate
        for rate in (settings.lr, *(group["base_lr"] for group in optimiser.param_groups))
    ]
    shown = rates[0]
    if workers.pace is not None:
        workers.pace.begin(epoch, settings.epochs, steps)
    for number, batch in enumerate(loader.train(epoch)):
        factor = schedule(before + number, of_all, settings.warmup, settings.schedule, settings.step_at)
        shown, *own = (rate * factor for rate in rates)
        for group, rate in zip(optimiser.param_groups, own, strict=True):
            group["lr"] = rate
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=workers.device.startswith("cuda")):
            raw = forward(wrapped, batch.inputs, task.outputs, batch.rows)
        loss = task.loss(raw, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            if epoch == probed and number == 0:
                raise _unsound(f"the loss is {value}", raw)
            raise _diverged(_step(f"the loss is {value}", epoch, number, steps, shown), task, state)
        # The last optimiser step of an epoch may accumulate fewer batches than the others.
        first = number - number % settings.accumulate
        (loss / min(settings.accumulate, steps - first)).backward()
        if number + 1 in (first + settings.accumulate, steps):
            served.pull(model)
            if settings.clip is not None:
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
                if not math.isfinite(norm):
                    told = _step(f"the norm of the gradients is {norm}", epoch, number, steps, shown)
                    raise _diverged(told, task, state)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            served.stepped(model, (before + number + 1) / of_all)
        total += value * batch.rows
        seen += batch.rows
        if workers.pace is not None:
            workers.pace.step(number + 1, batch.rows * workers.world, total / max(1, seen))
    speed = seen * workers.world / max(1e-9, time.monotonic() - started)
    loss_of_all = float(np.mean(workers.gather(total / max(1, seen))))
    return {"train_loss": loss_of_all, "learning_rate": shown}, speed


def _scores(task: Task, state: State) -> list[float]:
    """Returns the validation scores of all epochs so far; lower is better."""
    return [task.score(line[task.selected_column]) for line in state.history]


def _step(what: str, epoch: int, number: int, steps: int, rate: float) -> str:
    return f"{what} in epoch {epoch + 1}, step {number + 1} of {steps}, at a learning rate of {rate:.3g}"


def _diverged(what: str, task: Task, state: State) -> Diverged:
    """Builds the error, with a remedy (a lower learning rate) and the best epoch before the divergence."""
    settings = task.recipe.optimiser
    rates = f"optimiser.lr={settings.lr / 10:g}"
    if settings.backbone_lr != settings.lr:
        rates += f" --set optimiser.backbone_lr={settings.backbone_lr / 10:g}"
    best = state.history[state.best_epoch - 1] if state.best_epoch else None
    told = "" if best is None else f" The best epoch before was {state.best_epoch} ({task.judged(best)})."
    clip = "" if settings.clip is not None else " --set optimiser.clip=1"
    return Diverged(
        f"training diverged: {what}.{told} Lower the learning rate: --set {rates}{clip}. Nothing of this run is kept"
    )


def _unsound(what: str, raw: Mapping[str, Tensor]) -> Diverged:
    """Builds the error for a loss that is not finite before anything was learned."""
    wrong = [name for name, values in raw.items() if not bool(values.isfinite().all())]
    cause = (
        f"The network's numbers for {', '.join(wrong)} are not finite: look for NaN in its inputs and initial weights"
        if wrong
        else "The network's numbers are finite: look for NaN in the targets, or a loss that divides by 0"
    )
    return Diverged(f"{what} in the first step, before any weight was changed. {cause}. Nothing of this run is kept")


def _not_finite(model: nn.Module) -> str | None:
    """Returns the name of the first weight or statistic of the model that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


def _predict_split(
    networks: Sequence[Callable[[], nn.Module]], task: Task, loader: BatchLoader, split: str, workers: Workers
) -> list[dict[str, np.ndarray]]:
    """Returns decoded values (rows of the split, width) by output for each network, gathered from all workers."""
    parts = workers.gather(loader.predict_each(networks, split))
    results = []
    for number in range(len(networks)):
        result = {}
        for own in task.outputs:
            values = np.zeros((len(task.data.splits[split]), own.width), dtype=np.float32)
            for rank, part in enumerate(parts):
                values[rank :: workers.world] = part[number][own.name]
            result[own.name] = values
        results.append(result)
    return results


def _report(
    report: Report,
    run: Run,
    *,
    predictions: dict[str, dict[str, np.ndarray]] | None = None,
    domain: DomainSample | None = None,
) -> None:
    state = run.state
    measured = {name: value for name, value in state.history[-1].items() if name != "attempt"}
    latest = {"best": state.best, "best_epoch": state.best_epoch, **measured}
    if run.speed is not None:
        latest[SPEED] = run.speed
    if run.workers.rank != 0:
        report(latest, None)
        return
    with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
        with storage.explained(folder, "write it"):
            run.save(folder, predictions, domain)
        report(latest, folder)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
