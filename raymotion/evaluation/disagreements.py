"""Pairs of an image and an emotion on which two sources disagree, the strongest contradiction first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymotion.batch.label_dataset import LabelledRow, LabelledSet
from raymotion.evaluation.confident import rank_contradictions


@dataclass(frozen=True)
class Example:
    """One disagreement to inspect.

    Attributes:
        row: id, address and captions of the image.
        place: its position among the m compared images.
        kind: see `rank_disagreements`.
        given, predicted: all labels of the image.
        top: the five most probable emotions, with probability and whether each is given.
        suggested: the label that the predictions say instead, where one applies to a sample.
    """

    row: LabelledRow
    place: int
    kind: str
    emotion: str
    probability: float
    given: list[str]
    predicted: list[str]
    top: list[tuple[str, float, bool]]
    suggested: str | None


@dataclass(frozen=True)
class Disagreements:
    """k disagreements about the labels of m images, the strongest contradiction first.

    Attributes:
        labelled: source of ids, addresses and captions.
        rows: (m,) positions of the images in `labelled`.
        places, emotions: (k,) position of the image among the m, and of the emotion among the names.
        kinds: (k,) names of the kind.
        contradiction: (k,) in [0, 1]: for a given label, the share of images with a higher probability of this emotion;
            for an absent one, the share with a lower probability.
        quality: (m,) cleanlab's score of the image's labels, or None.
        persons: (m,) or None.
        suggested: (m,) position of the label that the predictions say instead, where one applies to a sample; or None.
    """

    labelled: LabelledSet
    rows: np.ndarray
    names: Sequence[str]
    places: np.ndarray
    emotions: np.ndarray
    kinds: list[str]
    probabilities: np.ndarray
    contradiction: np.ndarray
    given: np.ndarray
    predicted: np.ndarray
    quality: np.ndarray | None
    persons: np.ndarray | None
    suggested: np.ndarray | None

    def __len__(self) -> int:
        return len(self.places)

    def table(self) -> pa.Table:
        """Returns one row per disagreement; `given` and `predicted` hold all labels of the image."""
        shown = self.labelled.rows(self.rows[self.places].tolist())
        places = self.places.tolist()
        columns: dict[str, pa.Array] = {
            "sample_id": pa.array([row.sample_id for row in shown], pa.string()),
            "image_uri": pa.array([row.image_uri for row in shown], pa.string()),
            "captions": pa.array([row.captions for row in shown], pa.list_(pa.string())),
            "kind": pa.array(self.kinds, pa.string()),
            "emotion": pa.array([self.names[j] for j in self.emotions.tolist()], pa.string()),
            "probability": pa.array(self.probabilities[self.places, self.emotions], pa.float32()),
            "contradiction": pa.array(self.contradiction, pa.float32()),
            "given": pa.array([self._names(self.given[i]) for i in places], pa.list_(pa.string())),
            "predicted": pa.array([self._names(self.predicted[i]) for i in places], pa.list_(pa.string())),
        }
        if self.suggested is not None:
            columns["suggested"] = pa.array([self.names[j] for j in self.suggested[places].tolist()], pa.string())
        if self.quality is not None:
            columns["label_quality"] = pa.array(self.quality[self.places], pa.float32())
        if self.persons is not None:
            columns["persons"] = pa.array(self.persons[self.places], pa.int32())
        return pa.table(columns)

    def gallery(self, shown: int) -> list[Example]:
        """Returns the `shown` strongest, half of each kind; each image once, no emotion in more than a quarter."""
        per_emotion = max(1, -(-shown // 4))
        halves = {kind: shown - shown // 2 if i else shown // 2 for i, kind in enumerate(sorted(set(self.kinds)))}
        if len(halves) == 1:
            halves = dict.fromkeys(halves, shown)
        seen: set[int] = set()
        often: Counter[tuple[str, int]] = Counter()
        picked: list[int] = []
        for k, (place, emotion, kind) in enumerate(
            zip(self.places.tolist(), self.emotions.tolist(), self.kinds, strict=True)
        ):
            if halves[kind] == 0 or place in seen or often[kind, emotion] >= per_emotion:
                continue
            halves[kind] -= 1
            seen.add(place)
            often[kind, emotion] += 1
            picked.append(k)
        rows = self.labelled.rows(self.rows[self.places[picked]].tolist()) if picked else []
        return [self._example(k, row) for k, row in zip(picked, rows, strict=True)]

    def _example(self, k: int, row: LabelledRow) -> Example:
        i, j = int(self.places[k]), int(self.emotions[k])
        order = np.argsort(-self.probabilities[i], kind="stable")[:5].tolist()
        return Example(
            row=row,
            place=i,
            kind=self.kinds[k],
            emotion=self.names[j],
            probability=float(self.probabilities[i, j]),
            given=self._names(self.given[i]),
            predicted=self._names(self.predicted[i]),
            top=[(self.names[n], float(self.probabilities[i, n]), bool(self.given[i, n])) for n in order],
            suggested=None if self.suggested is None else self.names[self.suggested[i]],
        )

    def _names(self, mask: np.ndarray) -> list[str]:
        return [self.names[j] for j in np.flatnonzero(mask).tolist()]


def rank_disagreements(
    labelled: LabelledSet,
    rows: np.ndarray,
    wrong: np.ndarray,
    probabilities: np.ndarray,
    *,
    given: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    kinds: tuple[str, str],
    quality: np.ndarray | None = None,
    persons: np.ndarray | None = None,
    suggested: np.ndarray | None = None,
    given_is_kind: bool = False,
) -> Disagreements:
    """Sorts the pairs marked in `wrong` by how strongly the probabilities contradict `given`.

    Args:
        rows: (m,) positions in `labelled`.
        wrong, given, predicted: (m, K) bool.
        kinds: names of the two kinds: by default (given and not predicted, predicted and not given), with
            `given_is_kind` (not given, given).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    places, emotions, contradiction = rank_contradictions(wrong, p, given)
    own = given[places, emotions]
    first = ~own if given_is_kind else own
    return Disagreements(
        labelled=labelled,
        rows=rows,
        names=names,
        places=places,
        emotions=emotions,
        kinds=[kinds[0] if is_first else kinds[1] for is_first in first.tolist()],
        probabilities=p,
        contradiction=contradiction,
        given=given,
        predicted=predicted,
        quality=quality,
        persons=persons,
        suggested=suggested,
    )
