"""What synthetic annotators say of a synthetic person of EMOTIC, from the traits of scene, body and face.

The log-odds of each category are a sum over the three traits, with loadings of its own and one stream that tells most:
no stream can replace another, and a fusion that weighs them gains. An annotator draws from those odds; one annotates
a person of train, about five one of val, about three one of test, as in EMOTIC.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence

import numpy as np

from raymotion.data.synthetic.emotic_pictures import TRAITS
from raymotion.vocabulary import EMOTIC_26

# Share of train's persons with each category, from the loss weights that a public system ships (n of 23,266), the
# rarest raised to 2 %, so that two thousand persons have some of each in every split.
_PREVALENCE: dict[str, float] = {
    "Engagement": 0.552, "Happiness": 0.242, "Anticipation": 0.230, "Excitement": 0.189, "Confidence": 0.174,
    "Pleasure": 0.090, "Peace": 0.073, "Disconnection": 0.063, "Affection": 0.046, "Esteem": 0.037,
    "Sympathy": 0.031, "Yearning": 0.029, "Doubt/Confusion": 0.028, "Fatigue": 0.025, "Disquietment": 0.024,
}  # fmt: skip
_LEAST = 0.02

# The stream that tells most of a category; faces tell the rest.
_BY_SCENE = (
    "Anticipation", "Engagement", "Excitement", "Peace", "Pleasure", "Fear", "Disconnection", "Yearning", "Surprise",
)  # fmt: skip
_BY_BODY = (
    "Confidence", "Fatigue", "Anger", "Esteem", "Embarrassment", "Pain", "Aversion", "Disquietment", "Sympathy",
)  # fmt: skip

_MAIN, _OTHER = 3.4, 2.0  # log-odds that a trait of length 1 along its loading adds
# Of scene, body and face. Clothes are the easiest to see, faces the smallest: with equal parts a body alone told as
# much as picture and face together.
_PARTS = np.array([1.05, 0.8, 1.15])
ANNOTATORS: dict[str, tuple[int, ...]] = {"train": (1,), "val": (4, 5, 5, 6), "test": (2, 3, 3, 4)}

Vad = tuple[float, float, float]


@functools.cache
def loadings() -> np.ndarray:
    """Log-odds by trait, (26, 3 streams, 4): the same whatever the seed, so that sets of different seeds agree."""
    directions = np.random.default_rng(20170721).normal(size=(len(EMOTIC_26), 3, TRAITS))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    strength = np.full((len(EMOTIC_26), 3, 1), _OTHER)
    for i, label in enumerate(EMOTIC_26.labels):
        strength[i, 0 if label in _BY_SCENE else 1 if label in _BY_BODY else 2] = _MAIN
    return directions * strength * _PARTS[:, None]


@functools.cache
def _offsets() -> np.ndarray:
    """Log-odds of the middling person, (26,), that give train the shares of `_PREVALENCE`; by bisection."""
    traits = np.random.default_rng(1).uniform(-1, 1, (4000, 3, TRAITS))
    odds = np.einsum("nst,lst->nl", traits, loadings())
    goal = np.array([_PREVALENCE.get(label, _LEAST) for label in EMOTIC_26.labels])
    low, high = np.full(len(goal), -20.0), np.full(len(goal), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        over = (1 / (1 + np.exp(-(odds + middle)))).mean(0) > goal
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return (low + high) / 2


def odds_of(traits: Sequence[Sequence[float]]) -> np.ndarray:
    """Log-odds of the 26 categories, (26,), for the traits of scene, body and face, (3, 4)."""
    return np.asarray(np.einsum("st,lst->l", np.asarray(traits), loadings()) + _offsets())


def annotate(traits: Sequence[Sequence[float]], rng: random.Random) -> tuple[list[str], Vad]:
    """One annotator's categories (at least one, as EMOTIC asks for) and valence, arousal, dominance (1 to 10)."""
    odds = odds_of(traits)
    lenient = rng.gauss(0.0, 0.3)
    chosen = [
        label
        for label, value in zip(EMOTIC_26.labels, odds.tolist(), strict=True)
        if rng.random() < 1 / (1 + math.exp(-(value + lenient)))
    ]
    scene, body, face = traits
    means = (5.5 + 2.2 * face[1] + 1.2 * scene[0], 5.2 + 2.2 * scene[3] + 1.2 * body[1], 5.8 + 2.2 * body[0] + face[3])
    valence, arousal, dominance = (float(min(max(round(rng.gauss(mean, 1.0)), 1), 10)) for mean in means)
    return chosen or [EMOTIC_26.labels[int(np.argmax(odds))]], (valence, arousal, dominance)
