"""Samples that a model can learn from: who is in which split, what they hold of each input, and what is right of them.

The driver makes it once (`train.prepare`), and every worker reads it from a few files. Region features, embeddings and
pictures stay where they are. Imports no torch: Ray Train's controller imports this too.
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
    """Samples, and what is right about them.

    Attributes:
        sample_ids: n ids; groups: what no split divides and no interval tears apart, the image of each.
        splits: train, val and test -> positions of their samples.
        inputs: by name, each of n rows.
        targets: by output, each of n rows.
        facts: vocabulary and scale.
        counts: rows of the table, and why some were left out.
        memory: what runs have computed of these data, for the next run in the same process.
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
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    def targets_of(self, output: Output) -> Targets:
        """Of one output.

        Raises:
            InputError: these data were prepared without it.
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
        """The input whose pictures are read batch by batch, where a row has any; None: everything is in memory."""
        found = [own for own in self.inputs.values() if own.streamed and own.present.any()]
        return found[0] if found else None

    def take(self, rows: np.ndarray) -> TrainingSet:
        """Of some of the samples; the splits hold what is left of them."""
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
        )

    def without_test(self) -> TrainingSet:
        """As searches see them: no sample of the test split, no target of it, not its size.

        The public study's every choice agrees with its test scores (emotic_study.md 13.2). Here a trial could not read
        the test split if it tried.
        """
        return self.take(np.sort(np.concatenate([self.splits["train"], self.splits["val"]])))

    def save(self, folder: str) -> None:
        """Writes what workers need; `load` reads it."""
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
            "outputs": list(self.targets), "files": {ARRAYS: hashlib.sha256(data).hexdigest()},
        }  # fmt: skip
        records.write_record(storage.join(folder, META), meta)

    @classmethod
    def load(cls, folder: str, inputs: Sequence[Input]) -> TrainingSet:
        """What `save` left.

        Args:
            inputs: of the recipe that the data were prepared for, or of one like it.

        Raises:
            Damaged: it is not what was written.
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
        )
