"""Choosing, evaluating and auditing labels on anybody's arrays: `raymotion.select`, `evaluate` and `audit`.

Probabilities are an array (n, L), or a DataFrame with a column for each label, such as
`frame[frame.attrs["labels"]]` of `raymotion.label`. Targets are an array (n, L) of 0 and 1, such a DataFrame, or a list
of the labels of each sample. DataFrames are joined by the names of their columns, and must have the same index.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.config import load_settings
from raymotion.errors import InputError
from raymotion.evaluation.confident import LabelIssues, find_issues
from raymotion.evaluation.measure import Measured, measure
from raymotion.learning.collapse import Collapse, check_collapse
from raymotion.learning.metrics.multilabel import checked
from raymotion.learning.priors import PriorShift, estimate_rates
from raymotion.learning.selection import SelectionPolicy
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Selection:
    """The labels that a policy chose for n samples.

    Attributes:
        labels: the L names.
        mask: (n, L) bool, the chosen labels.
        selected: (n,) bool, the samples to train on.
        collapse: whether the chosen labels are nearly constant.
        shift: the class rates of training and those estimated from the probabilities, with `adapt_rates`.
    """

    labels: tuple[str, ...]
    mask: np.ndarray
    selected: np.ndarray
    collapse: Collapse
    shift: PriorShift | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def names(self) -> list[list[str]]:
        """Returns the chosen labels of each sample."""
        return [[self.labels[j] for j in np.flatnonzero(row).tolist()] for row in self.mask]

    def frame(self) -> pd.DataFrame:
        """Returns a row for each label: on how many of the selected samples it was chosen, and on which share."""
        import pandas as pd

        chosen = self.mask[self.selected].sum(axis=0)
        share = chosen / max(1, int(self.selected.sum()))
        return pd.DataFrame({"chosen": chosen, "share": share}, index=pd.Index(self.labels, name="label"))

    def _first_lines(self) -> list[str]:
        counts = f"{int(self.selected.sum())} of {len(self)} samples selected, {int(self.mask.sum())} labels"
        return [self.collapse.headline, counts]

    def __repr__(self) -> str:
        return "\n".join([*self._first_lines(), self.frame().to_string(float_format="{:.3f}".format)])

    def _repr_html_(self) -> str:
        return "<br>".join(map(html.escape, self._first_lines())) + self.frame().to_html(float_format="{:.3f}".format)


def select(
    probabilities: Any,
    labels: Sequence[str] | Vocabulary | None = None,
    *,
    thresholds: Sequence[float] | np.ndarray | None = None,
    sample_ids: Sequence[str] | None = None,
    prior: Sequence[float] | np.ndarray | None = None,
    **policy: Any,
) -> Selection:
    """Chooses labels from probabilities, as `raymotion select` does, and checks them for a collapse.

    Args:
        probabilities: (n, L) in [0, 1], or a DataFrame with a column for each label.
        labels: the L names, or a vocabulary; not needed with a DataFrame.
        thresholds: (L,), for the policy `class-thresholds`; `learning.selection.fit_class_thresholds` finds them.
        sample_ids: n names, by which `sample_fraction` draws. Default: the numbers of the rows.
        prior: (L,) class rates of the training split, for the collapse check and for `adapt_rates`.
        policy: the fields of `SelectionPolicy`: policy (top-per-image, threshold, class-thresholds, top-per-class),
            count, threshold, minimum, sample_fraction, seed, adapt_rates,
            rate_weight.

    Raises:
        InputError: shapes that do not match, values outside [0, 1], an unknown policy, or `adapt_rates` without
            `prior`.
    """
    p, names, _ = _probabilities(probabilities, labels)
    settings = load_settings(SelectionPolicy, options=policy)
    ids = [str(i) for i in range(len(p))] if sample_ids is None else [str(own) for own in sample_ids]
    rates = None if prior is None else _rates(prior, len(names))
    if settings.adapt_rates and rates is None:
        raise InputError("adapt_rates corrects from the class rates of training", remedy="Give them as prior.")
    shift = None
    if settings.adapt_rates and rates is not None:
        shift = estimate_rates(p, rates, weight=settings.rate_weight)
    mask, selected = settings.choose(p, ids, thresholds, shift)
    found = check_collapse(p, mask, names, prior=rates, selected=selected, model="model")
    return Selection(tuple(names), mask, selected, found, shift)


def evaluate(
    targets: Any,
    probabilities: Any,
    labels: Sequence[str] | Vocabulary | None = None,
    *,
    prior: Sequence[float] | np.ndarray | None = None,
    thresholds: Sequence[float] | np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    split: str = "test",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Measured:
    """Measures probabilities against targets, each metric beside a class prior and the best constant answer.

    Args:
        targets: (n, L) of 0 and 1, a DataFrame of them, or a list of the labels of each sample.
        probabilities: (n, L) in [0, 1], or a DataFrame with a column for each label.
        labels: the L names, or a vocabulary; not needed with a DataFrame.
        prior: (L,) class rates of the training split. None: the rates of these samples, which is said in the notes.
        thresholds: (L,) fitted on validation, for F1; None: 0.5.
        groups: n names of the resampled units, such as the image of several persons.
        split: name of these samples in the sentences.
        bootstrap: number of resamples for the intervals.

    Returns:
        The figures; `["macro_ap"]` is one of them, `.frame()` all, `.class_frame()` those of each label.

    Raises:
        InputError: shapes, indices or labels that do not match, values outside [0, 1].
    """
    p, names, index = _probabilities(probabilities, labels)
    truth = _targets(targets, p, names, index)
    rates = truth.mean(axis=0) if prior is None else _rates(prior, len(names))
    found = measure(
        truth, p, labels=names, prior=rates, thresholds=thresholds, groups=groups, split=split, bootstrap=bootstrap,
        seed=seed,
    )  # fmt: skip
    if prior is None:
        note = "No class rates of a training split were given: the class prior is that of these samples."
        found = replace(found, notes=[note, *found.notes])
    return found


def audit(
    targets: Any,
    probabilities: Any,
    labels: Sequence[str] | Vocabulary | None = None,
    *,
    one_label: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
) -> LabelIssues:
    """Finds labels that the probabilities contradict, by confident learning.

    Sound only if the model was not trained on these labels: a model that has seen a wrong label predicts it again.

    Args:
        targets: the labels to check: (n, L) of 0 and 1, a DataFrame of them, or a list of the labels of each sample.
        probabilities: (n, L) in [0, 1], or a DataFrame with a column for each label.
        labels: the L names, or a vocabulary; not needed with a DataFrame.
        one_label: whether exactly one label applies to a sample and its probabilities sum to 1 (a softmax): a sample is
            then flagged once at most, with the label that the probabilities suggest.

    Returns:
        The flags; `.frame()` lists them, the strongest contradiction first.

    Raises:
        InputError: shapes, indices or labels that do not match, values outside [0, 1].
    """
    p, names, index = _probabilities(probabilities, labels)
    truth = _targets(targets, p, names, index)
    return find_issues(truth > 0, p, names, one_label=one_label, bootstrap=bootstrap, seed=seed)


def _probabilities(given: Any, labels: Sequence[str] | Vocabulary | None) -> tuple[np.ndarray, list[str], Any]:
    """Returns probabilities (n, L), the L names, and the index of a DataFrame, else None."""
    columns = getattr(given, "columns", None)
    names = None if labels is None else list(labels.labels if isinstance(labels, Vocabulary) else labels)
    if columns is not None:
        own = [str(name) for name in columns]
        if names is not None and names != own:
            raise InputError(
                f"the columns of the probabilities are {_some(own)}, and the labels {_some(names)}",
                remedy="Choose the columns: frame[labels].",
            )
        names = own
    array = _numbers(given, "probabilities")
    if array.ndim == 2 and names is None:
        raise InputError("the labels have no names", remedy="Give labels=[...], or a DataFrame.")
    p = checked("probabilities", array)
    assert names is not None
    if len(names) != p.shape[1] or len(set(names)) != len(names):
        raise InputError(f"{len(set(names))} different labels do not fit {p.shape[1]} columns of probabilities")
    return p, names, getattr(given, "index", None) if columns is not None else None


def _targets(given: Any, p: np.ndarray, names: Sequence[str], index: Any) -> np.ndarray:
    """Returns targets (n, L) of 0 and 1 in the order of `names`."""
    has_index = hasattr(given, "index") and hasattr(given, "iloc")
    if has_index and index is not None and not given.index.equals(index):
        raise InputError("targets and probabilities have different indices", remedy="Join them first: targets.loc[...]")
    if hasattr(given, "columns"):
        if set(map(str, given.columns)) != set(names):
            raise InputError(f"the columns of the targets are {_some(map(str, given.columns))}, not {_some(names)}")
        truth = _numbers(given.rename(columns=str)[list(names)], "targets")
    elif isinstance(given, np.ndarray) and given.dtype != object:
        truth = _numbers(given, "targets")
    else:
        truth = _of_names(list(given) if isinstance(given, Iterable) else [given], names)
    truth = checked("targets", truth, shape=p.shape)
    if not np.isin(truth, (0.0, 1.0)).all():
        raise InputError("targets are 0 or 1", remedy="For shares of annotators use evaluation.measure.measure.")
    return truth


def _of_names(rows: list[Any], names: Sequence[str]) -> np.ndarray:
    places = {name: j for j, name in enumerate(names)}
    truth = np.zeros((len(rows), len(names)))
    for i, row in enumerate(rows):
        if row is None or isinstance(row, str | Mapping) or not hasattr(row, "__iter__"):
            raise InputError(f"{row!r} is no list of labels", path="targets", row=i)
        cells = list(row)
        if len(cells) == len(names) and not any(isinstance(cell, str) for cell in cells):
            truth[i] = [float(cell) for cell in cells]
            continue
        for name in cells:
            if name not in places:
                raise InputError(
                    f"{name!r} is not among the labels", path="targets", row=i, remedy=f"They are {_some(names)}."
                )
            truth[i, places[name]] = 1.0
    return truth


def _numbers(given: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are not numbers ({error})", remedy="Choose the columns of the labels: frame[labels]."
        ) from error
    if array.ndim == 2 and (missing := np.flatnonzero(np.isnan(array).any(axis=1))).size:
        raise InputError(
            f"NaN in {len(missing)} of {len(array)} rows", path=what, row=int(missing[0]),
            remedy="Leave out the rows with a failure: frame[frame.failure.isna()].",
        )  # fmt: skip
    return array


def _rates(prior: Any, width: int) -> np.ndarray:
    return checked("prior", _numbers(prior, "prior").reshape(1, -1), shape=(1, width))[0]


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" ... ({len(listed)})" if len(listed) > 5 else "")
