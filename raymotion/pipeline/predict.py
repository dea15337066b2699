"""The last stage of a labelling pipeline: predictions of the model from the results of earlier stages."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raymotion.errors import NotFinite
from raymotion.learning.domain import DomainSample
from raymotion.models.checkpoint import Model, load_model
from raymotion.models.domain_sample import DomainSampler
from raymotion.models.finite import finite_rows
from raymotion.models.inputs.base import Evidence, Input
from raymotion.models.inputs.streams import PersonInput
from raymotion.models.kind import Kind
from raymotion.models.registry import of_class
from raymotion.pipeline.stages import Failure, Item, not_finite

# Number of non-finite predictions, without any finite one, after which the model is rejected.
MOST_WITHOUT_ANSWER = 4


class FiniteAnswers:
    """Fails items with predictions of NaN or infinity, in one worker.

    Args:
        stage: name of the stage, for failures.
        folder: the model, for the error.
    """

    def __init__(self, stage: str, folder: str) -> None:
        self.stage, self.folder = stage, folder
        self.good = self.bad = 0

    def check(self, items: Sequence[Item], predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns bool (n,), which items have finite values in all outputs; the others fail.

        Raises:
            NotFinite: the model has returned several predictions, none of them finite.
        """
        good = np.ones(len(items), dtype=bool)
        for values in predicted.values():
            good &= finite_rows(values)
        for item, fine in zip(items, good, strict=True):
            if not fine:
                item.failure = not_finite(self.stage, "the model answers with NaN or infinity")
        self.good, self.bad = self.good + int(good.sum()), self.bad + int((~good).sum())
        if not self.good and self.bad >= MOST_WITHOUT_ANSWER:
            raise NotFinite(
                f"{self.folder}: the model answers with NaN or infinity to all of the first {self.bad} samples. It can "
                "label nothing: train it again, with a lower learning rate"
            )
        return good


class Predict:
    """Predicts the values of each output, stored in `item.output` by the output's name.

    A failed batch is repeated in parts (`batch.worker._process`), so items must not change before their prediction.

    Args:
        folder, fingerprint: the checkpoint, and its fingerprint when the job began.
        kind: kind of the model, as workers may not know a kind registered elsewhere.
        ablation: key of `ABLATIONS`: the streams of a person to keep.
        samples: whether to keep some random features of each shard for the domain check.

    Attributes:
        tally: number of predicted items with each part of the input.
    """

    name = "predict"

    def __init__(
        self, folder: str, fingerprint: str, kind: type[Kind], *, ablation: str | None = None,
        precision: str = "float32", samples: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.fingerprint, self.kind, self.samples = folder, fingerprint, kind, samples
        self.ablation, self.precision = ablation, precision
        self.whole_shard = kind.whole_shard
        self.tally: Counter[str] = Counter()
        self.answers = FiniteAnswers(self.name, folder)
        self.sampler: DomainSampler | None = None

    def setup(self, threads: int, device: str) -> None:
        """Loads the model."""
        import torch

        torch.set_num_threads(threads)
        of_class(self.kind)
        self.use(load_model(self.folder, device=device, expected_fingerprint=self.fingerprint))

    def use(self, model: Model, *, batch_size: int | None = None) -> None:
        """Uses a model that is already loaded."""
        self.model, self.batch_size = model, batch_size
        self.inputs: list[Input] = [
            own.without(self.ablation) if self.ablation is not None and isinstance(own, PersonInput) else own
            for own in model.inputs
        ]

    def begin(self, shard: int, rows: int) -> None:
        """See `Stage`."""
        self.sampler = DomainSampler(rows, shard) if self.samples and rows else None

    def sample(self) -> DomainSample | None:
        """See `Stage`."""
        return None if self.sampler is None else self.sampler.sample()

    def process(self, items: Sequence[Item]) -> None:
        """Predicts items; those without any input of the model fail."""
        evidence = {own.name: own.collect(items) for own in self.inputs}
        usable = np.zeros(len(items), dtype=bool)
        for own in self.inputs:
            if own.used:
                usable |= evidence[own.name].present
        for item, good in zip(items, usable, strict=True):
            if not good:
                needs = " or ".join(own.noun for own in self.inputs if own.used)
                item.failure = Failure(
                    self.name, "no_input", "NoInput", f"the model needs {needs}, and the sample has none"
                )
        rows = np.flatnonzero(usable)
        if not len(rows):
            return
        chosen = [items[row] for row in rows.tolist()]
        if len(rows) < len(items):
            evidence = {name: own.take(rows) for name, own in evidence.items()}
        own_model = self.model
        with (
            contextlib.nullcontext()
            if self.sampler is None
            else self.sampler.watching(own_model.info.kind, own_model.network, own_model.outputs)
        ):
            predicted = own_model.predict(evidence, batch_size=self.batch_size, precision=self.precision)
        if self.sampler is not None:
            self.sampler.add_statistics(len(chosen), _statistics(self.inputs, evidence, chosen))
        rows_of = [item.row for item in chosen]
        predicted = {own.name: own.adjust(predicted[own.name], rows_of) for own in self.model.outputs}
        for own in self.inputs:
            own.note(chosen)
        good = self.answers.check(chosen, predicted)
        for own in self.inputs:
            for part, there in evidence[own.name].parts().items():
                self.tally[part] += int((there & good).sum())
        for place in np.flatnonzero(good).tolist():
            item = chosen[place]
            for name, values in predicted.items():
                item.output[name] = values[place]
            for own in self.inputs:
                own.release(item)
            item.pixels = None


def _statistics(
    inputs: Sequence[Input], evidence: Mapping[str, Evidence], items: Sequence[Item]
) -> dict[str, np.ndarray]:
    """Returns the statistics of some items; see `Input.statistics`."""
    found = {name: own for used in inputs if used.used for name, own in used.statistics(evidence[used.name]).items()}
    if any(item.pixels is not None for item in items):
        shapes = [(np.nan, np.nan) if item.pixels is None else item.pixels.shape[:2] for item in items]
        found["aspect"] = np.array([width / height for height, width in shapes])
        found["kilobytes"] = np.array([np.nan if item.mark is None else item.mark.size / 1000 for item in items])
    return found


class PredictMean(Predict):
    """Predicts with several models, and stores the mean of their values.

    A sample that some of them cannot read (it has a picture and no caption, say) gets the mean of the others. Captions
    and unknown words are those of the first model that reads captions.

    Args:
        members: the stage of each model.
    """

    def __init__(self, members: Sequence[Predict]) -> None:
        self.members = list(members)
        self.whole_shard = any(own.whole_shard for own in members)
        self.tally = Counter()

    def setup(self, threads: int, device: str) -> None:
        for own in self.members:
            own.setup(threads, device)

    def begin(self, shard: int, rows: int) -> None:
        for own in self.members:
            own.begin(shard, rows)

    def sample(self) -> DomainSample | None:
        return next((own.sample() for own in self.members if own.samples), None)

    def use(self, model: Model, *, batch_size: int | None = None) -> None:
        for own, loaded in zip(self.members, model.members, strict=True):
            own.use(loaded, batch_size=batch_size)

    @property
    def batch_size(self) -> int | None:
        """See `Predict`."""
        return self.members[0].batch_size

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        for own in self.members:
            own.batch_size = value

    def process(self, items: Sequence[Item]) -> None:
        """Predicts items; those without any input of any model fail, and those that a model answers with NaN."""
        answers: list[list[Item]] = []
        seen: Counter[str] = Counter()
        for own in self.members:
            own.tally.clear()
            copies = [replace(item, features=dict(item.features), output={}) for item in items]
            own.process(copies)
            answers.append(copies)
            seen |= own.tally  # the larger count: models read the same samples
        self.tally += seen
        for item, told in zip(items, zip(*answers, strict=True), strict=True):
            good = [copy for copy in told if copy.failure is None]
            failures = [copy.failure for copy in told if copy.failure is not None]
            wrong = [failure for failure in failures if failure.reason != "no_input"]
            if wrong or not good:
                item.failure = [*wrong, *failures][0]
                continue
            for copy in reversed(good):
                item.output |= {name: value for name, value in copy.output.items() if value is not None}
            for output in self.members[0].model.outputs:
                values = np.stack([copy.output[output.name] for copy in good])
                item.output[output.name] = values.mean(axis=0, dtype=np.float64).astype(np.float32)
            item.pixels, item.regions, item.answer, item.features = None, None, None, {}
