"""Three simple defences, and how many of the poisons they find.

*Label issues* (confident learning, Northcutt et al. 2021, by cleanlab): samples whose label is contradicted by
probabilities out of sample. They come from a logistic regression on the features of the poisoned model's last layer,
fitted in folds by group. The features themselves were learned from all samples, the poisons too.

*Activation clustering* (Chen et al. 2018, "Detecting backdoor attacks on deep neural networks by activation
clustering", arXiv 1811.03728): the features of all samples with one label are reduced to ten principal components (the
paper takes independent ones, public implementations either) and divided in two by k-means. The smaller cluster is
suspicious if it is clearly smaller, and the two are apart (silhouette). So it finds nothing where poisons are half of a
label or more.

*Clusters that validation lacks*: the same clusters, but suspicious is one that holds fewer of the label's validation
samples, which nobody poisoned, than its share of the training samples leads to expect (binomial test). It does not ask
which cluster is the smaller one, and needs more poisons to be sure.

A pick of as many samples at random finds the same share of the poisons as it takes of the samples: that is the baseline
of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.evaluation.confident import find_issues, flag_one_label
from raymotion.learning.bootstrap import interval, resampled
from raymotion.learning.paired import mean_over_seeds
from raymotion.learning.significance import FEWEST_IMAGES, Gain
from raymotion.robustness.exact import exact_interval
from raymotion.robustness.poison_scores import share

FOLDS = 5
COMPONENTS = 10
# Of Chen et al.: a cluster of poisons holds less than about a third of a class, and its silhouette is 0.1 or more.
LARGEST_SHARE, LEAST_SILHOUETTE = 0.35, 0.1
# Points whose silhouette is computed as it is.
MOST_POINTS = 4000
# How improbable so few validation samples have to be.
SURPRISE = 0.01
ISSUES, CLUSTERS, MISSING = "label issues", "activation clustering", "clusters that validation lacks"
DEFENCES = {ISSUES: "label_issues", CLUSTERS: "activation_clustering", MISSING: "validation_clusters"}


@dataclass(frozen=True)
class Found:
    """What a defence found, over the seeds of one rate.

    Attributes:
        flagged: samples that it marks, of each seed. poisons: of them all. samples: of the training split.
        recall: share of the poisons that is marked, of each seed; precision: share of the marked samples that are
            poisons (None: nothing is marked).
        low, high: 95 % interval of the recall over images, of the mean over the seeds; where every seed found all
            poisons, or none, the exact binomial interval of one seed's.
        over_random: recall minus that of a random pick of as many samples.
    """

    flagged: tuple[int, ...]
    poisons: int
    samples: int
    recall: tuple[float, ...]
    precision: tuple[float | None, ...]
    low: float | None
    high: float | None
    over_random: Gain | None

    @property
    def random(self) -> float:
        """The recall of a random pick of as many samples, and its precision is the share of poisons."""
        return float(np.mean(self.flagged)) / self.samples


def label_issues(
    given: np.ndarray, features: np.ndarray, labels: Sequence[str], *, one_label: bool, groups: np.ndarray, seed: int
) -> np.ndarray:
    """Returns which samples have a label that is contradicted, or lack one, bool (n,).

    Args:
        given: the labels that training has, bool (n, L).
        features: (n, D) of the last layer.
        groups: (n,) the group of each sample, by number; folds keep groups together.
    """
    p = _out_of_fold(given, features, one_label=one_label, groups=groups, seed=seed)
    if not one_label:
        names = [str(own) for own in groups]
        found = find_issues(given, p, labels, groups=names, bootstrap=200, seed=seed)
        return np.asarray(found.flags.any(axis=1))
    learned = np.flatnonzero(given.any(axis=0))  # the regression knows no other label
    return flag_one_label(given[:, learned].argmax(axis=1), p[:, learned])


def _silhouette(points: np.ndarray, parts: np.ndarray, seed: int) -> float:
    """Returns the mean silhouette of points (n, D) in two clusters, of a sample of them where there are many.

    Its cost grows with the square of their number. Both clusters are in the sample, by their shares.
    """
    from sklearn.metrics import silhouette_score

    if len(points) > MOST_POINTS:
        rng, taken = np.random.default_rng([seed, len(points)]), []
        for part in (0, 1):
            rows = np.flatnonzero(parts == part)
            taken.append(rng.permutation(rows)[: max(2, round(MOST_POINTS * len(rows) / len(points)))])
        some = np.concatenate(taken)
        points, parts = points[some], parts[some]
    return float(silhouette_score(points, parts))


def suspicious_clusters(
    given: np.ndarray,
    features: np.ndarray,
    validation: np.ndarray,
    validation_features: np.ndarray,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which samples are in a suspicious cluster of one of their labels, bool (n,) twice.

    Args:
        given: the labels that training has, bool (n, L).
        features: (n, D) of the last layer.
        validation, validation_features: the same of the validation split, bool (m, L) and (m, D).

    Returns:
        By the size of the cluster (activation clustering), and by the validation samples that it lacks.
    """
    from scipy.stats import binom
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    by_size, by_validation = np.zeros(len(given), dtype=bool), np.zeros(len(given), dtype=bool)
    for label in range(given.shape[1]):
        rows = np.flatnonzero(given[:, label])
        if len(rows) < FEWEST_IMAGES or not np.ptp(features[rows], axis=0).any():
            continue
        own = features[rows].astype(np.float64)
        pca = PCA(min(COMPONENTS, len(rows) - 1, own.shape[1]), random_state=seed)
        reduced = pca.fit_transform(own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fewer distinct points than clusters
            means = KMeans(2, n_init=10, random_state=seed)
            parts = means.fit_predict(reduced)
        sizes = np.bincount(parts, minlength=2)
        if not sizes.min() or _silhouette(reduced, parts, seed) < LEAST_SILHOUETTE:
            continue
        if sizes.min() / len(rows) < LARGEST_SHARE:
            by_size[rows[parts == sizes.argmin()]] = True
        trusted = validation_features[validation[:, label]].astype(np.float64)
        if len(trusted) < FEWEST_IMAGES:
            continue
        there = np.bincount(means.predict(pca.transform(trusted)), minlength=2)
        for part in (0, 1):
            if binom.cdf(there[part], len(trusted), sizes[part] / len(rows)) < SURPRISE:
                by_validation[rows[parts == part]] = True
    return by_size, by_validation


def measure(flags: Sequence[np.ndarray], poisoned: Sequence[np.ndarray], units: np.ndarray) -> Found:
    """Measures what a defence found, seed by seed.

    Args:
        flags, poisoned: of each seed, bool (n,): which samples are marked, and which are poisons.
        units: (n,) the group of each sample.
    """
    groups = int(units.max()) + 1
    n = len(units)
    everyone = np.ones(n)
    recalls = [share(own, truth, units) for own, truth in zip(flags, poisoned, strict=True)]
    taken = [share(own, everyone, units) for own in flags]

    def both(counts: np.ndarray) -> np.ndarray:
        found, random = (mean_over_seeds(own, counts) for own in (recalls, taken))
        return np.concatenate([found, found - random], axis=1)

    count = int(poisoned[0].sum())
    seeds = [float(own(np.ones((1, groups)))[0]) for own in recalls]
    low = high = None
    over: Gain | None = None
    if count:
        _, drawn = resampled(both, groups, resamples=1000, seed=0)
        low, high = interval(drawn[:, 0]) or (None, None)
        if all(own == seeds[0] for own in seeds) and seeds[0] in (0.0, 1.0):
            # Every poison of every seed, or none. Seeds share images, so only those of one are counted.
            low, high = exact_interval(seeds[0], min(len(np.unique(units[truth])) for truth in poisoned))
        ends = interval(drawn[:, 1]) or (None, None)
        gains = tuple(own - float(flag.mean()) for own, flag in zip(seeds, flags, strict=True))
        over = Gain(gains, *ends)
    return Found(
        tuple(int(own.sum()) for own in flags), count, n, tuple(seeds) if count else (),
        tuple(
            float(truth[own].mean()) if count and own.any() else None
            for own, truth in zip(flags, poisoned, strict=True)
        ),
        low, high, over,
    )  # fmt: skip


def _out_of_fold(
    given: np.ndarray, features: np.ndarray, *, one_label: bool, groups: np.ndarray, seed: int
) -> np.ndarray:
    """Returns probabilities (n, L) of a logistic regression that did not see the sample's group."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(groups)) < FOLDS:
        raise InputError(
            f"{len(np.unique(groups))} groups are too few for a defence", remedy="Leave them out: --no-defences."
        )
    # Of several labels, the rarest decides the stratum.
    strata = np.where(given, given.sum(axis=0), np.inf).argmin(axis=1)
    p = np.zeros(given.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about labels with fewer samples than folds, and steps of the solver
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for train, held in folds.split(features, strata, groups):
            targets = [strata] if one_label else [given[:, label].astype(int) for label in range(given.shape[1])]
            for label, own in enumerate(targets):
                if len(np.unique(own[train])) < 2:
                    p[held, label if not one_label else own[train][0]] = 1.0 if one_label else own[train].mean()
                    continue
                model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
                model.fit(features[train], own[train])
                found = model.predict_proba(features[held])
                if one_label:
                    p[np.ix_(held, model.classes_)] = found
                else:
                    p[held, label] = found[:, 1]
    return p
