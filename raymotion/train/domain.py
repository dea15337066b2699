"""Samples the training split, so that the domain check of a labelling job knows what the model was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import nn

from raymotion.data.images.decode import ImageError, fetch, upright_size
from raymotion.errors import InputError
from raymotion.learning.domain import ROWS, DomainSample
from raymotion.models.domain_sample import DomainSampler
from raymotion.train.batches import BatchLoader
from raymotion.train.task import Task
from raymotion.train.workers import Workers

# Samples whose features form a group; features of several captions of a sample cannot be told apart.
TOGETHER = 16


def sample_training(model: nn.Module, task: Task, loader: BatchLoader, workers: Workers) -> DomainSample | None:
    """Returns features and statistics of at most `ROWS` random training samples, one of each picture, on rank 0.

    None on the other ranks, and if the kind of model names no last layer (`Kind.heads`).
    """
    try:
        task.kind.heads(model, task.outputs)
    except InputError:
        return None
    parts = [part for own in workers.gather(_own_part(model, task, loader, workers)) for part in own]
    return DomainSample.joined(parts) if parts and workers.rank == 0 else None


def _own_part(model: nn.Module, task: Task, loader: BatchLoader, workers: Workers) -> list[DomainSample]:
    training = task.data.splits["train"]
    shuffled = np.random.default_rng([task.recipe.seed, len(training)]).permutation(training)
    _, first = np.unique([task.data.groups[row] for row in shuffled], return_index=True)
    chosen = np.sort(shuffled[np.sort(first)[:ROWS]])
    starts = range(workers.rank * TOGETHER, len(chosen), workers.world * TOGETHER)
    portions = [chosen[start : start + TOGETHER] for start in starts]
    if not portions:  # fewer of them than workers
        return []
    described = {own.name: own for own in task.described()}
    found = []
    for start, (rows, evidence) in zip(starts, loader.evidence(portions), strict=True):
        sampler = DomainSampler(TOGETHER, start // TOGETHER)
        there = np.any([own.present for own in evidence.values()], axis=0)
        if not there.any():
            continue
        evidence = {name: own.take(np.flatnonzero(there)) for name, own in evidence.items()}
        with sampler.watching(task.kind, model, task.outputs):
            task.kind.predict(model, evidence, task.outputs)
        values = {
            name: own
            for key, part in evidence.items()
            if described[key].used
            for name, own in described[key].statistics(part).items()
        }
        if (source := task.streamed) is not None:
            values |= _of_files([source.image_uris[row] for row in rows[there]])
        sampler.add_statistics(int(there.sum()), values)
        sample = sampler.sample()
        found += [sample] if sample is not None else []
    return found


def _of_files(uris: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Returns aspect and size of the pictures' files; see `learning.domain.STATISTICS`."""

    def read(uri: str | None) -> tuple[float, float]:
        with contextlib.suppress(ImageError):
            if uri is not None:
                data = fetch(uri)
                width, height = upright_size(data)
                return width / height, len(data) / 1000
        return np.nan, np.nan

    with ThreadPoolExecutor(16) as pool:
        values = np.array(list(pool.map(read, uris)), dtype=np.float64)
    return {"aspect": values[:, 0], "kilobytes": values[:, 1]}
