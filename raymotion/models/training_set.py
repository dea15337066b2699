"""Training sets: samples with their splits, inputs and targets.

The driver prepares a set once (`train.prepare`), and every worker loads it from a few files. Region features,
embeddings and pictures are not copied. Does not import torch, because Ray Train's controller imports this too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

from raymotion import records, storage
from raymotion.data.samples import SPLITS
from raymotion.errors import InputError
from raymotion.models.inputs.base import Input, Prepared
from raymotion.models.outputs.base import DataFacts, Output, Targets

ARRAYS, META = "arrays.safetensors", "data.json"
AGAIN = "Run the same command again: it prepares the data again."


@dataclass(kw_only=True)
class TrainingSet:
    """Samples with their splits, inputs and targets.

    Attributes:
        sample_ids: n ids. groups: the image of each; splits and bootstrap intervals keep groups together.
        splits: train, val and test -> positions of their samples.
        inputs: by name, each of n rows.
        targets: by output, each of n rows.
        facts: vocabulary and scale.
        counts: number of rows in the table, and of rows left out by reason.
        label_texts: by output, texts for each of its labels (`Probe.labels`); only of outputs that have any.
        memory: cache of values computed from these data, for later runs in the same process.
    """

    sample_ids: list[str]
    groups: list[str]
    splits: dict[str, np.ndarray]
    inputs: dict[str, Prepared]
    targets: dict[str, Targets]
    facts: DataFacts
    counts: dict[str, int]
    name: str = ""
    fingerprint: str = ""
    label_texts: dict[str, list[list[str]]] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    def targets_of(self, output: Output) -> Targets:
        """Returns the targets of one output.

        Raises:
            InputError: the data were prepared without it.
        """
        if output.name not in self.targets:
            raise InputError(
                f"were prepared without targets for {output.name}",
                path=self.name,
                remedy="Run the same command again: it prepares the data again.",
            )
        return self.targets[output.name]

    @property
    def streamed(self) -> Any:
        """The input whose pictures are read batch by batch; None if no row has any, or all inputs are in memory."""
        found = [own for own in self.inputs.values() if own.streamed and own.present.any()]
        return found[0] if found else None

    def take(self, rows: np.ndarray) -> TrainingSet:
        """Selects some of the samples; the splits keep those that are selected."""
        place = np.full(len(self.sample_ids), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        splits = {name: place[own][place[own] >= 0] for name, own in self.splits.items()}
        return TrainingSet(
            sample_ids=[self.sample_ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            splits=splits,
            inputs={name: own.take(rows) for name, own in self.inputs.items()},
            targets={name: own.take(rows) for name, own in self.targets.items()},
            facts=self.facts,
            counts=self.counts,
            name=self.name,
            fingerprint=self.fingerprint,
            label_texts=self.label_texts,
        )

    def without_test(self) -> TrainingSet:
        """Returns the set as searches see it: without any sample or target of the test split, nor its size.

        Every choice of the public study agrees with its test scores (emotic_study.md 13.2). Here trials have no access
        to the test split.
        """
        return self.take(np.sort(np.concatenate([self.splits["train"], self.splits["val"]])))

    def save(self, folder: str) -> None:
        """Writes the files that workers read with `load`."""
        arrays = {f"split_{name}": rows for name, rows in self.splits.items()}
        for output, targets in self.targets.items():
            arrays |= {f"target {output} {name}": own for name, own in targets.arrays.items()}
            arrays[f"known {output}"] = targets.known
        inputs: dict[str, Any] = {}
        for name, prepared in self.inputs.items():
            place = storage.join(folder, name)
            inputs[name], own_arrays = prepared.save(place)
            arrays |= {f"input {name} {key}": own for key, own in own_arrays.items()}
        data = save({name: np.ascontiguousarray(own) for name, own in arrays.items()})
        storage.write_bytes(storage.join(folder, ARRAYS), data)
        meta = {
            "sample_ids": self.sample_ids, "groups": self.groups, "counts": self.counts, "name": self.name,
            "fingerprint": self.fingerprint, "facts": self.facts.to_dict(), "inputs": inputs,
            "outputs": list(self.targets), "label_texts": self.label_texts,
            "files": {ARRAYS: hashlib.sha256(data).hexdigest()},
        }  # fmt: skip
        records.write_record(storage.join(folder, META), meta)

    @classmethod
    def load(cls, folder: str, inputs: Sequence[Input]) -> TrainingSet:
        """Reads the files written by `save`.

        Args:
            inputs: of the recipe that the data were prepared for, or of a similar one.

        Raises:
            Damaged: the files differ from what was written.
        """
        meta = records.read_record(storage.join(folder, META), needs_seal=True, remedy=AGAIN)
        arrays: Mapping[str, np.ndarray] = records.read_arrays(
            storage.join(folder, ARRAYS), meta["files"][ARRAYS], remedy=AGAIN
        )

        def those(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): own for name, own in arrays.items() if name.startswith(prefix)}

        loaded = {
            own.name: own.load(storage.join(folder, own.name), meta["inputs"][own.name], those(f"input {own.name} "))
            for own in inputs
        }
        targets = {name: Targets(those(f"target {name} "), arrays[f"known {name}"]) for name in meta["outputs"]}
        return cls(
            sample_ids=meta["sample_ids"],
            groups=meta["groups"],
            splits={name: arrays[f"split_{name}"] for name in SPLITS},
            inputs=loaded,
            targets=targets,
            facts=DataFacts.from_dict(meta["facts"]),
            counts=meta["counts"],
            name=meta["name"],
            fingerprint=meta["fingerprint"],
            label_texts=meta["label_texts"],
        )
