"""The weights that a run validates, keeps and serves: by default the trained ones, or averages of them.

Averages over the steps, a mix with the weights before fine-tuning, and a penalty on the distance from these let a model
forget less of what it knew. See `models.recipe.OptimiserSettings` for the settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from raymotion.errors import InputError
from raymotion.train.task import Task

AVERAGE, START = "average.safetensors", "start.safetensors"
# The share of the training in some weights, and a function that returns the network with them.
Candidate = tuple[float, Callable[[], nn.Module]]


class Served:
    """The weights that a run serves.

    Attributes:
        pulled: names of the parameters that `l2_sp` pulls to the start.

    Raises:
        InputError: `l2_sp` is set, and no weight that is trained is pretrained.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.settings = task.recipe.optimiser
        self.pulled = _pulled(model, task) if self.settings.l2_sp else frozenset()
        self._mixes = self.settings.interpolate != (1.0,)
        self._start: dict[str, Tensor] = {}
        self._average: AveragedModel | None = None
        if self.settings.average != "none":
            ema = self.settings.average == "ema"
            rule = get_ema_multi_avg_fn(self.settings.ema_decay) if ema else get_swa_multi_avg_fn()
            self._average = AveragedModel(model, multi_avg_fn=_of_floats(rule), use_buffers=True)

    @property
    def averaged_steps(self) -> int | None:
        """The number of steps in the average; None: weights are not averaged."""
        return None if self._average is None else int(self._average.n_averaged)

    def begin(self, model: nn.Module) -> None:
        """Records the start: the weights before the first step of gradient descent, after the probe if any."""
        if self._mixes or self.pulled:
            self._start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def pull(self, model: nn.Module) -> None:
        """Adds the gradient of the penalty `l2_sp` / 2 |theta - start|^2 to the gradients.

        Not to the loss, because DDP forbids weights of a branch that a batch leaves out to appear there.
        """
        if not self.pulled:
            return
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.pulled:
                    gap = (parameter - self._start[name]) * self.settings.l2_sp
                    parameter.grad = gap if parameter.grad is None else parameter.grad.add_(gap)

    def stepped(self, model: nn.Module, done: float) -> None:
        """Averages the weights after a step.

        Args:
            done: share of all steps that are done.
        """
        if self._average is not None and (self.settings.average == "ema" or done > self.settings.swa_from):
            self._average.update_parameters(model)

    @contextlib.contextmanager
    def candidates(self, model: nn.Module, *, mixed: bool) -> Iterator[list[Candidate]]:
        """Yields the weights to choose from, which one network carries in turn; afterwards the model is as before.

        Args:
            mixed: whether to mix them with the start; False where nothing has been fine-tuned yet.
        """
        network = self._network(model)
        if not (self._mixes and mixed):
            yield [(1.0, lambda: network)]
            return
        trained = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

        def load(share: float) -> nn.Module:
            network.load_state_dict({name: _between(self._start[name], own, share) for name, own in trained.items()})
            return network

        try:
            yield [(share, partial(load, share)) for share in self.settings.interpolate]
        finally:
            network.load_state_dict(trained)

    def _network(self, model: nn.Module) -> nn.Module:
        averaged = self._average is not None and self._average.n_averaged > 0
        return self._average.module if self._average is not None and averaged else model

    def networks(self, model: nn.Module) -> list[nn.Module]:
        """Returns the networks whose weights matter: the model, and the average where there is one."""
        return [model] if self._average is None else [model, self._average.module]

    def save(self, folder: str) -> None:
        """Writes what a resume needs, and nothing by default."""
        if self._average is not None:
            save_file(weights_of(self._average), Path(folder, AVERAGE))
        if self._start:
            save_file({name: tensor.cpu().contiguous() for name, tensor in self._start.items()}, Path(folder, START))

    def load(self, folder: str, device: str) -> None:
        """Reads what `save` has written."""
        if self._average is not None:
            self._average.load_state_dict(load_file(Path(folder, AVERAGE)))
        if self._mixes or self.pulled:
            self._start = load_file(Path(folder, START), device=device)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of a model's state dict on the CPU, each tensor with memory of its own."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def _pulled(model: nn.Module, task: Task) -> frozenset[str]:
    heads: dict[str, nn.Linear] = {}
    with contextlib.suppress(InputError):  # a kind without last layers for a probe
        heads = dict(task.kind.heads(model, task.outputs))
    last = {id(parameter) for head in heads.values() for parameter in head.parameters()}
    found = frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in last and task.kind.pretrained(task.recipe, model, name)
    )
    if not found:
        raise InputError(
            "setting optimiser.l2_sp: none of the weights that are trained is pretrained, so it would do nothing",
            remedy="Leave it out, or start from pretrained weights and train them.",
        )
    return found


def _between(start: Tensor, trained: Tensor, share: float) -> Tensor:
    return torch.lerp(start, trained, share) if trained.is_floating_point() else trained


def _of_floats(rule: Callable[..., None]) -> Callable[..., None]:
    """Lets a rule average floats only, because it truncates or refuses integers: counters and positions are copied."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        if averaged[0].is_floating_point():
            rule(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return update
