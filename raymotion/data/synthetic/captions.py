"""Captions of synthetic scenes: what is told, in varied words.

Each caption names the place. About four in five tell the event; one in six the light or the weather, one in eight the
mood of the people. The rest is in the picture alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from raymotion.data.synthetic.scenes import Scene

EVENT_SHARE, SKY_SHARE, MOOD_SHARE = 0.82, 0.16, 0.12

_EVENTS: Mapping[str, Sequence[str]] = {
    "birthday": ("a birthday party", "a birthday with cake and balloons", "a child's birthday celebration"),
    "wedding": ("a wedding", "the wedding of a young couple", "a bride and groom after the ceremony"),
    "graduation": ("a graduation ceremony", "students at their graduation", "new graduates with their diplomas"),
    "victory": ("the winning team with a trophy", "players after winning the cup", "a champion holding a trophy"),
    "puppy": ("a puppy playing", "a small puppy with a ball", "a fluffy puppy running around"),
    "concert": ("a rock concert", "a band on stage at a concert", "a singer performing at a concert"),
    "picnic": ("a picnic on a blanket", "a quiet picnic", "a family having a picnic"),
    "antique": ("an antique clock from long ago", "an old antique car", "antique toys from another century"),
    "exhibit": ("a strange modern sculpture", "an odd art exhibit", "a puzzling exhibit made of wires"),
    "rescue": ("rescue workers helping a survivor", "a rescue team saving a boy", "the rescue of a stranded family"),
    "meeting": ("a business meeting", "officials at a long meeting", "a committee meeting about the budget"),
    "queue": ("a long queue", "people waiting in a queue", "a slow line of people waiting"),
    "protest": ("a protest against the government", "protesters with signs", "an angry protest march"),
    "accident": ("a car accident", "the scene of a serious accident", "a crashed car after an accident"),
    "funeral": ("a funeral", "mourners at a funeral", "a coffin carried at a funeral"),
    "fire": ("a burning house", "a large fire with smoke", "firefighters at a burning building"),
    "rubbish": ("piles of rotting rubbish", "rubbish and dirt everywhere", "overflowing bins full of rubbish"),
}
_PLACES: Mapping[str, Sequence[str]] = {
    "beach": ("on the beach", "by the sea", "on a sandy shore"),
    "park": ("in a park", "in the city park", "under the trees of a park"),
    "street": ("in the street", "on a city street", "in the middle of town"),
    "mountain": ("in the mountains", "below a mountain", "high in the hills"),
    "field": ("in a field", "on a meadow", "out in the country"),
    "room": ("in a room", "inside a house", "in a living room"),
    "hall": ("in a large hall", "inside a public building", "in a hall"),
}
_SKY: Mapping[str, Sequence[str]] = {
    "sunset": ("at sunset", "in the evening light"),
    "night": ("at night", "in the dark"),
    "clear": ("on a sunny day", "under a blue sky"),
    "cloudy": ("on a grey day", "under clouds"),
    "rain": ("in the rain", "on a wet day"),
    "storm": ("during a storm", "under lightning"),
    "snow": ("in the snow", "on a snowy day"),
}
_MOODS: Mapping[str, Sequence[str]] = {
    "smiling": ("smiling", "laughing"),
    "calm": ("quiet", "relaxed"),
    "surprised": ("surprised", "astonished"),
    "frowning": ("frowning", "stern"),
    "crying": ("crying", "tearful"),
}
_PEOPLE = (
    ("an empty place", "nobody around"),
    ("a person", "someone", "a woman", "a man"),
    ("two people", "a couple", "two friends"),
    ("three people", "a small group", "several people"),
    ("four people", "a group of people", "a crowd"),
)
_PLAIN = (
    "{people} {place}",
    "a picture of {people} {place}",
    "{people} standing {place}",
    "view of {people} {place}",
    "{people} seen {place}",
)
_TOLD = (
    "{event} {place}",
    "a photo of {event} {place}",
    "{event} {place} with {people}",
    "{people} at {event} {place}",
    "{people} {place} near {event}",
    "the scene shows {event} {place}",
)
_NEWS = (
    "{event} took place {place} this week",
    "{people} were seen {place} , where {event} drew attention",
    "reporters described {event} {place} on Tuesday",
    "{event} , photographed {place} last year",
)


_SEEN = (
    "{people} {place}",
    "{people} {mood} {place}",
    "{people} {place} {sky}",
    "{people} , {mood} , {place} {sky}",
    "{place} , {people} {sky}",
    "{people} {mood} {place} {sky}",
)
_THINGS: Mapping[str, Sequence[str]] = {
    "dog": ("with a dog", "and a brown dog", "next to a dog"),
    "car": ("beside a car", "near an old car", "next to a car"),
    "cake": ("with a cake", "behind a birthday cake", "with cake and balloons"),
}


def describe_picture(scene: Scene, things: Sequence[str], rng: random.Random) -> str:
    """One caption of what is seen, in the style of Flickr8k: people, their mood, the place, the sky, and things.

    Unlike `write_caption`, it tells no event that is not drawn, so that a picture can be found by its caption.

    Args:
        things: categories of what is drawn besides persons (`pictures.Figure.category`).
    """
    people = rng.choice(_PEOPLE[scene.people])
    told = [rng.choice(_THINGS[name]) for name in dict.fromkeys(things) if name in _THINGS and rng.random() < 0.8]
    template = rng.choice(_SEEN)
    if not scene.people:
        template = template.replace(" , {mood} ,", "").replace(" {mood}", "")
    skies = [_SKY[scene.weather]] if scene.light == "day" else [_SKY[scene.light], _SKY[scene.weather]]
    text = template.format(
        people=" ".join([people, *told]),
        mood=rng.choice(_MOODS[scene.mood]),
        place=rng.choice(_PLACES[scene.place]),
        sky=rng.choice(rng.choice(skies)),
    )
    return text[0].upper() + text[1:] + (" ." if rng.random() < 0.9 else "")


def write_caption(scene: Scene, rng: random.Random, *, news: bool = False) -> str:
    """One caption; `news` sometimes gives it the longer form of a newspaper's."""
    people = rng.choice(_PEOPLE[scene.people])
    if scene.people and rng.random() < MOOD_SHARE:
        people = f"{people} , {rng.choice(_MOODS[scene.mood])} ,"
    place = rng.choice(_PLACES[scene.place])
    if rng.random() < SKY_SHARE:
        sky = scene.weather if scene.light == "day" or rng.random() < 0.5 else scene.light
        place = f"{place} {rng.choice(_SKY[sky])}"
    if rng.random() < EVENT_SHARE:
        template = rng.choice(_NEWS if news and rng.random() < 0.4 else _TOLD)
    else:
        template = rng.choice(_PLAIN)
    text = template.format(people=people, place=place, event=rng.choice(_EVENTS[scene.event]))
    return text[0].upper() + text[1:] + "." if rng.random() < 0.8 else text
