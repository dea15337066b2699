"""A linear probe: the last layer, fitted to the features of an otherwise untouched network.

A logistic regression on frozen features keeps what a pretrained model knows of things that the training data lack,
and is a better start for fine-tuning than a random layer (Kumar et al., "Fine-tuning can distort pretrained features
and underperform out-of-distribution", 2022). See `models.recipe.Probe` for the settings.

The weights of an output are W = V R^(1/2) + s R P. V is penalised; R is the correlation of the output's values in
training to the power `coupling`; the rows of P are the mean features of the texts of each label, around their mean; s
is one number that is fitted almost freely. So V = 0 is the answer without training data, and labels share what they
learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.errors import Diverged, InputError
from raymotion.models.outputs.base import Output, forward

if TYPE_CHECKING:
    from raymotion.models.recipe import Probe
    from raymotion.train.batches import BatchLoader
    from raymotion.train.task import Task
    from raymotion.train.workers import Workers

# L-BFGS needs 20 to 60 iterations on frozen sentence embeddings.
ITERATIONS = 200
# Standard deviation of the prior of s, in logits: far beyond any value of interest, but where the texts alone tell the
# labels of a small training split apart, s would grow without end.
FREE = 10.0


@dataclass
class _Layer:
    """The fitted last layer of one output: weight (width, D) and bias (width,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


def fit_probe(model: nn.Module, task: Task, loader: BatchLoader, workers: Workers) -> tuple[float, int]:
    """Fits the last layer of each output, in place; returns the training loss, and the number of samples.

    All workers compute features; rank 0 fits, and every rank gets its layers.

    Raises:
        InputError: the kind has no last layer to fit, or none of its inputs reads the texts of `Probe.labels`.
        Diverged: a feature or a fitted weight is not finite.
    """
    settings = task.recipe.probe
    assert settings is not None
    if task.extra is not None and task.extra.count:
        raise InputError("a probe is fitted to samples of the table, not to synthetic ones", remedy="Leave either out.")
    heads = task.kind.heads(model, task.outputs)
    training = _some(task.data.splits["train"], settings.samples, task.recipe.seed)
    chosen = {"train": training, "val": _validation(task, settings)}
    gathered = {split: _gathered(model, heads, task, loader, rows, workers) for split, rows in chosen.items()}
    features = {split: own for split, (own, _) in gathered.items()}
    # A sample whose inputs could not be read would teach its label to nothing.
    training, features["train"] = _read_alone(training, *gathered["train"])
    fitted: list[tuple[float, dict[str, _Layer]]] = []
    if workers.rank == 0:
        texts = {
            name: _text_features(model, name, heads[name], task, own) for name, own in task.data.label_texts.items()
        }
        fitted = [(0.0, {})]
        for own in task.outputs:
            loss, layer = _fit_output(own, task, settings, features, training, texts.get(own.name))
            fitted = [(fitted[0][0] + own.weight * loss, {**fitted[0][1], own.name: layer})]
    loss, layers = workers.gather(fitted)[0][0]
    with torch.no_grad():
        for name, layer in layers.items():
            heads[name].weight.copy_(layer.weight)
            heads[name].bias.copy_(layer.bias)
    return float(loss), len(training)


def _some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng([seed, len(rows)]).choice(rows, most, replace=False))


def _validation(task: Task, settings: Probe) -> np.ndarray:
    """Returns the rows that choose among several strengths."""
    return task.data.splits["val"] if len(settings.strengths) > 1 else np.zeros(0, dtype=np.int64)


@torch.no_grad()
def _gathered(
    model: nn.Module,
    heads: Mapping[str, nn.Linear],
    task: Task,
    loader: BatchLoader,
    rows: np.ndarray,
    workers: Workers,
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Returns the inputs of the last layers, float32 (rows, D), by output, and which rows could be read, bool (rows,).

    Without augmentation, dropout or gradient.

    Of several captions of a sample, one is drawn.
    """
    was_training = model.training
    model.eval()
    if workers.pace is not None and len(rows):
        workers.pace.begin(0, task.recipe.optimiser.epochs, loader.frozen_batches(rows))
    found: dict[str, list[Tensor]] = {name: [torch.zeros(0, head.in_features)] for name, head in heads.items()}
    read = [np.zeros(0, dtype=bool)]
    for number, (arguments, there) in enumerate(loader.frozen(rows[workers.rank :: workers.world]), start=1):
        count = len(there)
        read.append(there)
        for name, own in head_inputs(model, heads, arguments, task.outputs, count).items():
            found[name].append(own)
        if workers.pace is not None:
            workers.pace.step(number, count * workers.world, None)
    model.train(was_training)
    result = {}
    for name, head in heads.items():
        values = torch.zeros(len(rows), head.in_features)
        for rank, part in enumerate(workers.gather(torch.cat(found[name]))):
            values[rank :: workers.world] = part
        if not bool(values.isfinite().all()):
            raise Diverged(f"the features that the last layer of {name} reads are NaN or infinite, before any training")
        result[name] = values
    present = np.zeros(len(rows), dtype=bool)
    for rank, part in enumerate(workers.gather(np.concatenate(read))):
        present[rank :: workers.world] = part
    return result, present


def _read_alone(
    rows: np.ndarray, features: Mapping[str, Tensor], present: np.ndarray
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Returns those of the rows that could be read, with their features."""
    kept = torch.from_numpy(present)
    return rows[present], {name: own[kept] for name, own in features.items()}


def head_inputs(
    model: nn.Module, heads: Mapping[str, nn.Linear], arguments: Mapping[str, Any], outputs: Sequence[Output], rows: int
) -> dict[str, Tensor]:
    """Returns what the last layers read of n samples, float32 (n, D) on the CPU, by output.

    Args:
        heads: see `Kind.heads`.
        arguments: of the network.

    Raises:
        InputError: a layer's result is not the output as it stands.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, given: seen.update({name: given[0].detach().float().cpu()})

    hooks = [head.register_forward_pre_hook(keep(name)) for name, head in heads.items()]
    try:
        raw = forward(model, arguments, outputs, rows)
    finally:
        for hook in hooks:
            hook.remove()
    for name, head in heads.items():
        said = head(seen[name].to(head.weight)).cpu() if name in seen else None
        if (
            said is None
            or said.shape != raw[name].shape
            or not torch.allclose(said, raw[name].float().cpu(), rtol=1e-3, atol=1e-3)
        ):
            raise InputError(
                f"the layer that heads returns for {name} does not give the numbers of {type(model).__name__}",
                remedy="Return the layer whose result is the output as it stands, or leave probe out.",
            )
    return seen


@torch.no_grad()
def _text_features(model: nn.Module, name: str, head: nn.Linear, task: Task, texts: Sequence[Sequence[str]]) -> Tensor:
    """Returns the mean features of each label's texts, around the mean of all labels, (labels, D)."""
    device = str(next(model.parameters()).device)
    flat = list(itertools.chain.from_iterable(texts))
    was_training = model.training
    model.eval()
    parts: list[Tensor] = []
    for start in range(0, len(flat), 32):
        some = flat[start : start + 32]
        given = [found for own in task.inputs.values() if (found := own.texts(some, device)) is not None]
        if not given:
            raise InputError(
                f"setting probe.labels: none of the model's inputs ({', '.join(task.inputs)}) reads texts",
                remedy="Leave it out.",
            )
        arguments = {name: value for own in given for name, value in own.items()}
        parts += head_inputs(model, {name: head}, arguments, task.outputs, len(some)).values()
    model.train(was_training)
    ends = np.cumsum([len(own) for own in texts])
    means = torch.stack([own.mean(0) for own in torch.tensor_split(torch.cat(parts), torch.from_numpy(ends[:-1]))])
    return means - means.mean(0)


def _fit_output(
    output: Output,
    task: Task,
    settings: Probe,
    features: Mapping[str, Mapping[str, Tensor]],
    training: np.ndarray,
    texts: Tensor | None,
) -> tuple[float, _Layer]:
    """Returns the loss and the layer of the strength that is best on validation."""
    targets = task.data.targets_of(output)
    known = torch.from_numpy(targets.known[training])
    own, rows = features["train"][output.name][known], training[targets.known[training]]
    fits = [(*_fit(own, output, task, rows, strength, settings.coupling, texts), strength)
            for strength in settings.strengths]  # fmt: skip
    if len(fits) == 1:
        return fits[0][0], fits[0][1]
    validation = task.data.splits["val"]
    metric = task.metric if output is task.selecting else output.selects

    def score(layer: _Layer) -> float:
        values = output.decode(layer(features["val"][output.name])).numpy()
        value = output.metrics(targets, validation, values)[metric]
        return value if metric in output.lower_is_better else -value

    best = min(fits, key=lambda fit: score(fit[1]))
    return best[0], best[1]


def _fit(
    features: Tensor, output: Output, task: Task, rows: np.ndarray, strength: float, coupling: float,
    texts: Tensor | None,
) -> tuple[float, _Layer]:  # fmt: skip
    """Minimises the output's loss with the penalty |V|^2 / (2 strength n width), as a mean over samples and values."""
    targets = task.data.targets_of(output)
    batch = output.batch(targets, rows, "cpu")
    mean = features.mean(0)
    scale = (features - mean).square().sum(1).mean().sqrt().clamp(min=1e-12)
    x = (features - mean) / scale
    half = _root(output.correlation(targets, rows), coupling)
    toward = None if texts is None else half @ half @ texts / scale
    if toward is not None:  # so that `s` is of the size of a logit
        toward = toward / (x @ toward.T).std().clamp(min=1e-12)
    start = output.first_numbers(targets, rows)
    bias = torch.zeros(output.width) if start is None else start.detach().clone().float()
    loose, amount = torch.zeros(output.width, x.shape[1]), torch.zeros(1)
    for parameter in (loose, bias, amount):
        parameter.requires_grad_(True)

    # `loose` is V / strength^(1/2): with a small strength, V itself would be so much stiffer than `bias` and `amount`
    # that L-BFGS would stop before it has moved these.
    freedom = math.sqrt(strength) * half

    def weight() -> Tensor:
        own = freedom @ loose
        return own if toward is None else own + amount * toward

    optimiser = torch.optim.LBFGS(
        [loose, bias] if toward is None else [loose, bias, amount],
        max_iter=ITERATIONS, tolerance_grad=1e-8, tolerance_change=1e-10, line_search_fn="strong_wolfe",
    )  # fmt: skip
    measured = [0.0]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = task.criteria[output.name](x @ weight().T + bias, batch, epoch=0, weights=None)
        measured[0] = float(loss.detach())
        penalty = loose.square().sum() + (amount / FREE).square().sum()
        total = loss + penalty / (2 * len(x) * output.width)
        total.backward()
        return total

    optimiser.step(closure)
    with torch.no_grad():
        fitted = weight() / scale
        layer = _Layer(fitted, bias - fitted @ mean)
    if not bool(layer.weight.isfinite().all() and layer.bias.isfinite().all()):
        raise Diverged(f"the probe of {output.name} has NaN or infinite weights. Lower probe.strengths")
    return measured[0], layer


def _root(correlation: np.ndarray, coupling: float) -> Tensor:
    """Returns the symmetric square root of the correlation to the power `coupling`."""
    values, vectors = np.linalg.eigh(correlation)
    # Labels that occur together always leave directions of no variance, which a penalty would forbid.
    powers = np.maximum(values, 1e-4) ** (coupling / 2)
    return torch.from_numpy((vectors * powers) @ vectors.T).float()
