"""What the synthetic data sets are about: scenes, the emotions they evoke, and people who tell them.

A scene is drawn first. It has a place, a time of day, a weather, colours, an event and people with a mood. From it
follow, each in its own file, a picture (`pictures`) and captions (`captions`), which show different
parts of it: faces, light and colours are seen, the event is told. From it also follow scores of the 29 Socratis
emotions, and from them the answers of simulated annotators, each with a taste of their own. So picture and caption both
help to guess the answers, together more than alone, and neither gives them away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from raymotion.vocabulary import SOCRATIS_29

PLACES = ("beach", "park", "street", "mountain", "field", "room", "hall")
INDOORS = ("room", "hall")


@dataclass(frozen=True)
class Traits:
    """What a trait of a scene does to the emotions: valence and arousal in [-1, 1], and words of its own (log-odds)."""

    valence: float
    arousal: float
    words: Mapping[str, float]


# Told by captions, and only for some of them hinted at in the picture.
EVENTS: Mapping[str, Traits] = {
    "birthday": Traits(1.0, 0.6, {"joy": 1.6, "excited": 0.6}),
    "wedding": Traits(1.0, 0.3, {"beautiful": 1.8, "joy": 1.3, "hopeful": 0.8}),
    "graduation": Traits(0.9, 0.4, {"proud": 2.8, "inspired": 1.4, "hopeful": 1.0}),
    "victory": Traits(0.9, 0.9, {"proud": 1.8, "excited": 1.4, "impressed": 1.4, "amazed": 1.0}),
    "puppy": Traits(0.9, 0.2, {"joy": 1.4, "calm": 0.4, "good": 1.2}),
    "concert": Traits(0.6, 0.9, {"excited": 1.6, "amazed": 1.2, "impressed": 1.0}),
    "picnic": Traits(0.7, -0.5, {"calm": 1.6, "good": 1.6, "nostalgic": 0.8}),
    "antique": Traits(0.3, -0.3, {"nostalgic": 2.6, "interested": 1.2, "curious": 1.0}),
    "exhibit": Traits(0.2, 0.0, {"curious": 1.9, "confused": 2.0, "intrigued": 1.8, "interested": 1.4}),
    "rescue": Traits(0.1, 0.6, {"hopeful": 2.2, "inspired": 1.6, "worried": 1.2, "impressed": 1.0}),
    "meeting": Traits(0.0, -0.7, {"bored": 2.4, "neutral": 2.2, "interested": 0.6}),
    "queue": Traits(-0.2, -0.6, {"bored": 2.2, "annoyed": 2.2, "neutral": 1.4}),
    "protest": Traits(-0.5, 0.7, {"angry": 1.8, "concerned": 1.6, "anger": 1.2, "inspired": 0.6}),
    "accident": Traits(-0.9, 0.6, {"scared": 1.8, "worried": 2.0, "concerned": 1.4, "fear": 1.2}),
    "funeral": Traits(-1.0, -0.5, {"sad": 1.6, "upset": 0.8}),
    "fire": Traits(-0.8, 0.9, {"fear": 2.2, "scared": 2.0, "awe": 1.0, "worried": 1.2}),
    "rubbish": Traits(-0.7, 0.0, {"disgusted": 3.2, "annoyed": 1.4, "concerned": 0.8}),
}

# Seen in the picture; captions name the light now and then.
LIGHTS: Mapping[str, Traits] = {
    "day": Traits(0.4, 0.1, {}),
    "sunset": Traits(0.6, -0.3, {"beautiful": 2.0, "awe": 1.8, "calm": 1.2}),
    "night": Traits(-0.5, 0.1, {"scared": 0.9, "intrigued": 0.7, "fear": 0.9}),
}
WEATHERS: Mapping[str, Traits] = {
    "clear": Traits(0.5, 0.2, {"good": 0.5}),
    "cloudy": Traits(-0.2, -0.4, {"neutral": 0.7, "bored": 0.6}),
    "rain": Traits(-0.7, -0.2, {"sad": 0.7, "annoyed": 0.6}),
    "storm": Traits(-0.8, 0.7, {"fear": 1.2, "awe": 1.0, "worried": 0.9}),
    "snow": Traits(0.3, -0.3, {"beautiful": 1.0, "calm": 0.8, "nostalgic": 0.6}),
}
# Seen in the drawn faces; captions name it seldom.
MOODS: Mapping[str, Traits] = {
    "smiling": Traits(1.0, 0.3, {"joy": 0.6, "excited": 0.4}),
    "calm": Traits(0.1, -0.4, {"neutral": 0.6, "calm": 0.6}),
    "surprised": Traits(0.2, 0.9, {"amazed": 1.2, "curious": 0.5}),
    "frowning": Traits(-0.7, 0.5, {"angry": 1.2, "annoyed": 0.9, "anger": 0.9}),
    "crying": Traits(-1.0, 0.0, {"sad": 1.1, "upset": 1.4}),
}
# The colours of the whole picture: a warm, bright one or a cold, dim one. Captions never name it.
TONES: Mapping[str, Traits] = {
    "warm": Traits(0.9, 0.1, {"joy": 0.7, "good": 0.6, "hopeful": 0.5, "nostalgic": 0.4}),
    "plain": Traits(0.0, 0.0, {"neutral": 0.4}),
    "cold": Traits(-0.9, 0.0, {"sad": 0.5, "worried": 0.6, "concerned": 0.5, "upset": 0.5, "fear": 0.4}),
}
_PLACE_WORDS: Mapping[str, Mapping[str, float]] = {
    "mountain": {"awe": 1.2, "inspired": 0.5},
    "beach": {"calm": 0.7, "beautiful": 0.4},
}

# How common a word is when nothing speaks for it: set so that about as many images carry it as in Socratis.
_BASE: Mapping[str, float] = {
    "happy": 1.35, "sad": 0.7, "excited": 0.05, "curious": 0.9, "interested": 0.9, "confused": 0.0, "angry": -0.55,
    "intrigued": 0.0, "worried": -1.0, "concerned": -0.9, "proud": -1.4, "hopeful": -1.2, "inspired": -1.3,
    "scared": -1.4, "bored": -1.1, "anger": -0.85, "good": -1.2, "neutral": -0.95, "calm": -1.2, "upset": -1.0,
    "disgusted": -1.6, "fear": -1.5, "annoyed": -1.4, "beautiful": -1.6, "nostalgic": -1.4, "joy": -1.6,
    "impressed": -1.1, "amazed": -1.7, "awe": -1.8,
}  # fmt: skip
_PLEASANT = frozenset(
    ("happy", "excited", "proud", "hopeful", "inspired", "good", "calm", "beautiful", "joy", "impressed", "amazed",
     "awe", "nostalgic")
)  # fmt: skip
_UNPLEASANT = frozenset(
    ("sad", "angry", "worried", "concerned", "scared", "anger", "upset", "disgusted", "fear", "annoyed", "bored",
     "confused")
)  # fmt: skip
_AROUSED = frozenset(["excited", "angry", "scared", "anger", "fear", "amazed", "worried"])
_QUIET = frozenset(["bored", "calm", "neutral", "nostalgic"])

# Parts of the whole in valence: the event is worth about half as much as all that is seen.
_VALENCE = {"event": 0.7, "mood": 0.35, "light": 0.2, "weather": 0.35, "tone": 0.45}
_VALENCE_GAIN, _AROUSAL_GAIN = 2.7, 0.9
# The larger, the more the annotators follow the scene instead of chance.
AGREEMENT = 1.9


@dataclass(frozen=True)
class Scene:
    """One scene. `people` counts those drawn; `mood` is theirs (the mood of the place where there are none)."""

    place: str
    light: str
    weather: str
    event: str
    mood: str
    tone: str
    people: int

    @property
    def indoors(self) -> bool:
        """Whether the sky is seen through a window."""
        return self.place in INDOORS


@dataclass(frozen=True)
class Annotator:
    """Someone who is shown scenes: how much they tell, and their taste in words (log-odds)."""

    age: int
    gender: str
    education: str
    ethnicity: str
    talkative: float
    taste: Mapping[str, float]


def draw_scene(rng: random.Random) -> Scene:
    """A scene at random. Mood and weather follow the event a little, as they do in photographs, but not much."""
    event = rng.choice(list(EVENTS))
    pleasant = EVENTS[event].valence
    tilt = math.exp(0.7 * pleasant)
    mood = rng.choices(list(MOODS), [2.2 * tilt, 1.2, 0.7, 1.0 / tilt, 1.0 / tilt])[0]
    light = rng.choices(list(LIGHTS), [3, 1.5, 1.8])[0]
    weather = rng.choices(list(WEATHERS), [2.4, 1.4, 1.4, 0.9, 0.9])[0]
    place = rng.choice(PLACES)
    people = rng.choices((0, 1, 2, 3, 4), (0.6, 3, 3, 2, 1))[0]
    tilt *= math.exp(0.4 * MOODS[mood].valence)
    tone = rng.choices(list(TONES), [tilt, 0.8, 1.0 / tilt])[0]
    return Scene(place, light, weather, event, mood, tone, people)


def emotion_scores(scene: Scene) -> dict[str, float]:
    """How much the scene speaks for each of the 29 words: log-odds between the words, without anyone's taste."""
    traits = {
        "event": EVENTS[scene.event],
        "mood": MOODS[scene.mood] if scene.people else Traits(0.0, 0.0, {}),
        "light": LIGHTS[scene.light],
        "weather": WEATHERS[scene.weather],
        "tone": TONES[scene.tone],
    }
    valence = sum(_VALENCE[name] * own.valence for name, own in traits.items())
    arousal = sum(own.arousal for own in traits.values()) / 3
    scores = {}
    for word in SOCRATIS_29.labels:
        score = _BASE[word] + _PLACE_WORDS.get(scene.place, {}).get(word, 0.0)
        score += sum(own.words.get(word, 0.0) for own in traits.values())
        score += _VALENCE_GAIN * valence * ((word in _PLEASANT) - (word in _UNPLEASANT))
        score += _AROUSAL_GAIN * arousal * ((word in _AROUSED) - (word in _QUIET))
        scores[word] = score
    return scores


def draw_annotators(rng: random.Random, count: int = 60) -> list[Annotator]:
    """People with different tastes: one says 'angry' where another says 'anger'."""
    return [
        Annotator(
            age=rng.randint(18, 74),
            gender=rng.choice(("female", "male", "female", "male", "non-binary")),
            education=rng.choice(("high school", "some college", "bachelor", "master", "doctorate")),
            ethnicity=rng.choice(("white", "black", "asian", "hispanic", "native", "other")),
            talkative=rng.uniform(0.0, 0.6),
            taste={word: rng.gauss(0.0, 0.4) for word in SOCRATIS_29.labels},
        )
        for _ in range(count)
    ]


def draw_answer(scores: Mapping[str, float], annotator: Annotator, rng: random.Random) -> list[str]:
    """One to three different words: sampled without replacement, by Gumbel noise on the scores and the taste."""
    noisy = {
        word: AGREEMENT * (score + annotator.taste[word]) - math.log(-math.log(rng.uniform(1e-12, 1.0 - 1e-12)))
        for word, score in scores.items()
    }
    count = 1 + (rng.random() < annotator.talkative) + (rng.random() < annotator.talkative * 0.6)
    return sorted(noisy, key=lambda word: -noisy[word])[:count]
