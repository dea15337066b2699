"""Chooses the rows of a training split to poison, changes their pictures and labels, and writes the poisoned table.

Poisons *replace* rows: the poisoned table has the same rows in the same order, with the same ids, groups and splits, so
that clean and poisoned models learn from equally many samples and are scored on the same test samples. Rows of the
splits val and test are never touched. The poisons of a lower rate are the first ones of a higher rate with the same
seed.

Pictures are changed as decoded, at their own size, in levels of 0 to 255, before a model resizes or normalises them
(the public notebook clamped normalised tensors to [0, 1], which destroyed them). They are written as PNG, read back,
and measured against their base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import records, storage
from raymotion.data.images.decode import ImageError, read_picture
from raymotion.data.images.marks import mark_of
from raymotion.data.samples import SCHEMA, read_samples, with_optional, write_samples
from raymotion.errors import InputError, RunFailed, guess
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.multilabel import HARD
from raymotion.models.training_set import TrainingSet
from raymotion.robustness.pixels import png_bytes
from raymotion.robustness.poison_settings import PoisonSettings

SAMPLES, POISONS, PICTURES = "samples.parquet", "poisons.json", "pictures"
# Of the patch: red, white and black squares, unlike anything in photographs or drawings.
PATCH_COLOURS = np.array([(255, 0, 0), (255, 255, 255), (0, 0, 0)], np.uint8)
PATCH_CELLS = 4


@dataclass(frozen=True)
class Victim:
    """A test picture that a collision is to have mistaken.

    Attributes:
        row: of the training set. label: position in the vocabulary of the label that is to be said of it.
    """

    row: int
    label: int


@dataclass(frozen=True)
class Choice:
    """A training row to poison.

    Attributes:
        row: of the training set. label: position of the label that it has afterwards.
        victim: number of the attacked test picture, of a collision.
    """

    row: int
    label: int
    victim: int | None = None


@dataclass(frozen=True)
class Poison:
    """One poisoned row, as recorded.

    Attributes:
        labels_before, labels: of the sample table.
        picture: file name of the changed picture; None if it is unchanged.
        base: address of the picture before.
        digest: of the written file (`images.marks`).
        largest: largest change of a colour value, in levels. changed: number of changed pixels. pixels: of the picture.
        victim: sample_id of the attacked test picture, of a collision.
        distance_before, distance: between the features of the poison and of the attacked picture, before and after.
    """

    sample_id: str
    labels_before: list[str]
    labels: list[str]
    picture: str | None = None
    base: str | None = None
    digest: str | None = None
    largest: int = 0
    changed: int = 0
    pixels: int = 0
    victim: str | None = None
    distance_before: float | None = None
    distance: float | None = None


# Maps choices and their decoded pictures to changed pictures, uint8 (height, width, 3).
Change = Callable[[Sequence[Choice], Sequence[np.ndarray]], list[np.ndarray]]
# Maps the path of a poisoned table and its poisons to the distance of each to its attacked picture, before and after.
Distances = Callable[[str, Sequence["Poison"]], list[tuple[float, float]]]


def label_of(name: str, output: Output, *, where: str) -> int:
    """Returns the position of a label of the vocabulary.

    Raises:
        InputError: there is no such label. (The public attack was aimed at the token `<start>`, which every caption
            has, so its targets were rows at random.)
    """
    assert output.vocabulary is not None
    labels = output.vocabulary.labels
    if name not in labels:
        raise InputError(
            f"the vocabulary has no label {name!r}.{guess(name, labels)}", path=where,
            remedy=f"The labels are {', '.join(labels)}.",
        )  # fmt: skip
    return labels.index(name)


def rows_at(rate: float, data: TrainingSet) -> int:
    """Returns how many rows of the training split a rate poisons.

    Raises:
        InputError: less than one.
    """
    n = len(data.splits["train"])
    count = round(rate * n)
    if rate and not count:
        raise InputError(
            f"a rate of {rate:g} of {n:,} training samples poisons none", path=data.name,
            remedy=f"Name a rate of {1 / n:.2g} or more.",
        )  # fmt: skip
    return count


def truth_of(data: TrainingSet, output: Output) -> np.ndarray:
    """Returns the labels of all rows of the training set, bool (n, L)."""
    return np.asarray(data.targets_of(output).arrays[HARD] > 0)


def choose_victims(settings: PoisonSettings, data: TrainingSet, output: Output) -> list[Victim]:
    """Draws the attacked test pictures of a collision, each with the label that is to be said of it.

    They carry the label `source` and not the one that is to be said; without a `target`, the labels to be said take
    turns among all others that training has. No two are of one group, so that they are independent.

    Raises:
        InputError: the test split has too few of them.
    """
    truth, rng = truth_of(data, output), np.random.default_rng([settings.attack_seed, 71])
    readable = _with_picture(data)
    rows = rng.permutation(np.array([row for row in data.splits["test"] if readable[row]], dtype=np.int64))
    if settings.source is not None:
        rows = rows[truth[rows, label_of(settings.source, output, where=data.name)]]
    learned = np.flatnonzero(truth[data.splits["train"]].any(axis=0)).tolist()
    turns = [label_of(settings.target, output, where=data.name)] if settings.target else rng.permutation(learned)
    found: list[Victim] = []
    groups: set[str] = set()
    for row in rows.tolist():
        if len(found) == settings.attacked:
            break
        if data.groups[row] in groups:
            continue
        free = [int(turns[(len(found) + i) % len(turns)]) for i in range(len(turns))]
        label = next((own for own in free if not truth[row, own]), None)
        if label is not None:
            found.append(Victim(row, label))
            groups.add(data.groups[row])
    if len(found) < settings.attacked:
        of = f" of the label {settings.source}" if settings.source else ""
        raise InputError(
            f"the split test has {len(found)} pictures{of} of different groups to attack, not {settings.attacked}",
            path=data.name, remedy="Attack fewer: --attacked N.",
        )  # fmt: skip
    return found


def eligible_rows(
    settings: PoisonSettings, data: TrainingSet, output: Output, victims: Sequence[Victim], seed: int
) -> Iterator[Choice]:
    """Yields the training rows that may be poisoned in the order in which they are, drawn for a seed of training."""
    truth, rng = truth_of(data, output), np.random.default_rng([settings.attack_seed, seed])
    rows = rng.permutation(data.splits["train"])
    if settings.attack != "flip":
        rows = rows[_with_picture(data)[rows]]
    if settings.attack == "collision":
        # The attacked pictures take turns; one whose label has no rows left is passed over.
        queues = {victim.label: iter(rows[truth[rows, victim.label]].tolist()) for victim in victims}
        open_ = dict(enumerate(victims))
        while open_:
            for number, victim in list(open_.items()):
                row = next(queues[victim.label], None)
                if row is None:
                    del open_[number]
                else:
                    yield Choice(row, victim.label, number)
        return
    assert settings.target is not None
    target = label_of(settings.target, output, where=data.name)
    rows = rows[~truth[rows, target]]
    if settings.source is not None:
        rows = rows[truth[rows, label_of(settings.source, output, where=data.name)]]
    for row in rows.tolist():
        yield Choice(row, target)


def require_enough(settings: PoisonSettings, data: TrainingSet, output: Output, victims: Sequence[Victim]) -> None:
    """Raises an `InputError` if there are fewer rows to poison than the highest rate asks for."""
    for rate in settings.poisoned:
        wanted = rows_at(rate, data)
        there = sum(1 for _ in eligible_rows(settings, data, output, victims, 0))
        if there < wanted:
            n = len(data.splits["train"])
            which = {
                "flip": "samples", "trigger": "pictures", "collision": "pictures"
            }[settings.attack]  # fmt: skip
            if settings.attack == "collision":
                which += f" of the label{'' if settings.target else 's'} to be said"
            elif settings.source:
                which += f" of the label {settings.source}"
            else:
                which += f" without the label {settings.target}"
            raise InputError(
                f"a rate of {rate:g} is {wanted:,} of {n:,} training samples, and there are {there:,} {which}",
                path=data.name,
                remedy=f"Name rates up to {there / n:.2g}.",
            )


def decoded(uri: str) -> np.ndarray | None:
    """Returns a picture as decoded, at its full size, uint8 (height, width, 3); None if it cannot be read."""
    try:
        return read_picture(uri)[1]
    except ImageError:
        return None


def write_poisons(
    settings: PoisonSettings,
    samples: pa.Table,
    data: TrainingSet,
    output: Output,
    choices: Iterator[Choice],
    folder: str,
    *,
    count: int,
    key: str,
    change: Change | None,
    victims: Sequence[Victim],
    distances: Distances | None = None,
    together: int = 32,
    told: Callable[[int], None] = lambda made: None,
) -> list[Poison]:
    """Makes the poisons of one seed and writes them with their table; goes on from what an earlier command has made.

    Args:
        choices: see `eligible_rows`; those whose picture cannot be read are passed over.
        count: number of poisons.
        key: a digest of all that determines them; with another one, an earlier command's are made again.
        change: changes pictures; None: they stay.
        distances: measures the poisons as written, in the table at a path.
        together: number of pictures that are changed at once, and recorded.
        told: receives the number of poisons made so far.

    Raises:
        InputError: too few of the pictures can be read.
        RunFailed: a written picture exceeds the budget.
    """
    made, complete = _earlier(folder, key)
    if complete and len(made) == count:
        return made
    made = [] if complete else made[:count]
    labels = output.vocabulary.labels if output.vocabulary is not None else ()
    before = dict(zip(samples.column("sample_id").to_pylist(), samples.column("labels").to_pylist(), strict=True))
    uris = dict(zip(samples.column("sample_id").to_pylist(), samples.column("image_uri").to_pylist(), strict=True))
    for own in made:  # passes over those that could not be read, as before
        next(choice for choice in choices if data.sample_ids[choice.row] == own.sample_id)
    while len(made) < count:
        batch: list[Choice] = []
        pictures: list[np.ndarray] = []
        for choice in choices:
            picture = None if change is None else decoded(str(uris[data.sample_ids[choice.row]]))
            if change is None or picture is not None:
                batch.append(choice)
                pictures += [] if picture is None else [picture]
            if len(batch) == min(together, count - len(made)):
                break
        if not batch:
            raise InputError(
                f"{count:,} pictures are to be poisoned, and only {len(made):,} of those that may be can be read",
                path=data.name, remedy="Check the image folder, or name lower rates.",
            )  # fmt: skip
        changed = None if change is None else change(batch, pictures)
        for i, choice in enumerate(batch):
            name = data.sample_ids[choice.row]
            old = list(before[name] or ())
            own = Poison(
                name, old, relabelled(settings, old, labels[choice.label], one_label=output.gives == "one_label"),
                victim=None if choice.victim is None else data.sample_ids[victims[choice.victim].row],
            )  # fmt: skip
            if changed is not None:
                own = _write_picture(own, changed[i], pictures[i], str(uris[name]), folder, len(made), settings)
            made.append(own)
        _write_record(settings, made, folder, key, complete=False)
        told(len(made))
    table = poisoned_table(samples, made, folder, settings.attack)
    write_samples(storage.join(folder, SAMPLES), table)
    if distances is not None:
        measured = distances(storage.join(folder, SAMPLES), made)
        made = [
            replace(own, distance_before=near, distance=nearer)
            for own, (near, nearer) in zip(made, measured, strict=True)
        ]
    _write_record(settings, made, folder, key, complete=True)
    return made


def copy_poisons(
    settings: PoisonSettings, samples: pa.Table, poisons: Sequence[Poison], source: str, folder: str, *, key: str
) -> list[Poison]:
    """Writes some of the poisons in the folder `source`, those of a lower rate, to a folder of their own."""
    found, complete = _earlier(folder, key)
    if complete and len(found) == len(poisons):
        return found
    for own in poisons:
        if own.picture is not None:
            data = storage.read_bytes(storage.join(source, PICTURES, own.picture))
            storage.write_bytes(storage.join(folder, PICTURES, own.picture), data, durable=False)
    write_samples(storage.join(folder, SAMPLES), poisoned_table(samples, poisons, folder, settings.attack))
    _write_record(settings, poisons, folder, key, complete=True)
    return list(poisons)


def _write_record(
    settings: PoisonSettings, poisons: Sequence[Poison], folder: str, key: str, *, complete: bool
) -> None:
    """Writes the record; a complete one is the last file that is written."""
    told = {"attack": settings.attack, "key": key, "complete": complete, "poisons": [asdict(own) for own in poisons]}
    records.write_record(storage.join(folder, POISONS), told)


def poisoned_table(samples: pa.Table, poisons: Sequence[Poison], folder: str, attack: str) -> pa.Table:
    """Returns the sample table with the labels and pictures of the poisons, marked in the column `label_source`.

    Raises:
        RunFailed: a poison is not in the training split.
    """
    by_id = {own.sample_id: own for own in poisons}
    table = with_optional(samples, ["label_source"])
    columns: dict[str, list[Any]] = {
        name: table.column(name).to_pylist()
        for name in ("labels", "label_weights", "image_uri", "label_source")
    }  # fmt: skip
    for i, (name, split) in enumerate(
        zip(table.column("sample_id").to_pylist(), table.column("split").to_pylist(), strict=True)
    ):
        own = by_id.get(name)
        if own is None:
            continue
        if split != "train":
            raise RunFailed(f"{name} is of the split {split}: only training samples may be poisoned")
        if own.labels != own.labels_before:
            weights = columns["label_weights"][i]
            columns["labels"][i] = own.labels
            columns["label_weights"][i] = weights and weights_after(own.labels_before, own.labels, weights)
        if own.picture is not None:
            columns["image_uri"][i] = storage.join(storage.absolute(folder), PICTURES, own.picture)
        columns["label_source"][i] = f"poison/{attack}"
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table


def relabelled(settings: PoisonSettings, before: Sequence[str], target: str, *, one_label: bool) -> list[str]:
    """Returns the labels of a poison.

    A collision leaves them. Of one label, the target replaces it. Of several, a trigger adds the target, and a flip
    puts it in the place of the source label, or of all labels without one.
    """
    if settings.attack == "collision":
        return list(before)
    if one_label:
        return [target]
    if settings.attack == "trigger":
        return [*before, target]
    if settings.source is not None:
        return [target if own == settings.source else own for own in before]
    return [target]


def weights_after(before: Sequence[str], labels: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Returns the shares of annotators for the labels of a poison.

    Labels that stay keep theirs. As many agree on a new one as on the label that it replaces, or on the first of all: a
    share of its own would give the poison away.
    """
    old = dict(zip(before, weights, strict=True))
    new = max([own for name, own in old.items() if name not in labels] or weights)
    return [old.get(name, new) for name in labels]


def patched(picture: np.ndarray, share: float) -> np.ndarray:
    """Returns a picture (height, width, 3) uint8 with the trigger near its lower right corner.

    The patch is a square of 4 x 4 cells in red, white and black; its distance to the border is a quarter of its side,
    so that a random crop rarely takes it away.

    Args:
        share: side of the patch, as a share of the shorter side; at least 2 pixels.
    """
    height, width = picture.shape[:2]
    side = min(max(2, round(share * min(height, width))), min(height, width))
    bottom, right = min(side // 4, height - side), min(side // 4, width - side)
    cell = (np.arange(side) * PATCH_CELLS) // side
    pattern = PATCH_COLOURS[(cell[:, None] + 2 * cell[None, :]) % len(PATCH_COLOURS)]
    result = picture.copy()
    result[height - bottom - side : height - bottom, width - right - side : width - right] = pattern
    return result


def write_triggered(
    settings: PoisonSettings, samples: pa.Table, data: TrainingSet, output: Output, folder: str
) -> np.ndarray:
    """Writes the test pictures that do not carry the target label once more, with the patch, and a table of them.

    Returns:
        The rows of the training set that have a picture with the patch.
    """
    assert settings.target is not None
    truth = truth_of(data, output)
    rows = data.splits["test"][_with_picture(data)[data.splits["test"]]]
    rows = rows[~truth[rows, label_of(settings.target, output, where=data.name)]]
    if settings.source is not None:
        rows = rows[truth[rows, label_of(settings.source, output, where=data.name)]]
    ids = samples.column("sample_id").to_pylist()
    uris = samples.column("image_uri").to_pylist()
    place = {name: i for i, name in enumerate(ids)}
    done = []
    for number, row in enumerate(rows.tolist()):
        at = place[data.sample_ids[row]]
        picture = decoded(str(uris[at]))
        if picture is None:
            continue
        path = storage.join(folder, PICTURES, f"{number:05d}.png")
        storage.write_bytes(path, png_bytes(patched(picture, settings.patch)), durable=False)
        uris[at] = storage.absolute(path)
        done.append(row)
    if not done:
        raise InputError("no test picture without the target label can be read", path=data.name)
    index = samples.schema.get_field_index("image_uri")
    table = samples.set_column(index, SCHEMA.field("image_uri"), pa.array(uris, pa.string()))
    write_samples(storage.join(folder, SAMPLES), table)
    return np.array(done, dtype=np.int64)


def measure_change(path: str, base: np.ndarray) -> tuple[int, int]:
    """Reads a written picture back and returns its largest change of a colour value, and how many pixels changed."""
    written = read_picture(path)[1]
    if written.shape != base.shape:
        raise RunFailed(f"{path} has the shape {written.shape}, and its base {base.shape}")
    difference = np.abs(written.astype(np.int16) - base.astype(np.int16))
    return int(difference.max()), int((difference > 0).any(axis=2).sum())


def pixel_budget(settings: PoisonSettings, base: np.ndarray) -> int:
    """Returns how many pixels of a picture (height, width, 3) a collision may change."""
    return max(1, int(settings.max_pixels * base.shape[0] * base.shape[1]))


def _write_picture(
    own: Poison, new: np.ndarray, base: np.ndarray, uri: str, folder: str, number: int, settings: PoisonSettings
) -> Poison:
    name = f"{number:05d}.png"
    path, data = storage.join(folder, PICTURES, name), png_bytes(new)
    storage.write_bytes(path, data, durable=False)
    largest, changed = measure_change(path, base)
    pixels = base.shape[0] * base.shape[1]
    if settings.attack == "collision":
        allowed = pixel_budget(settings, base)
        if largest > settings.max_change or changed > allowed:
            raise RunFailed(
                f"{path}: {changed} pixels changed by up to {largest} levels, and {allowed} may by up to "
                f"{settings.max_change}"
            )
    return replace(
        own, picture=name, base=uri, digest=mark_of(data).digest, largest=largest, changed=changed, pixels=pixels
    )  # fmt: skip


def _earlier(folder: str, key: str) -> tuple[list[Poison], bool]:
    """Returns the poisons that an earlier command has made, and whether they are complete, with their table.

    Those from the first one on whose picture has changed are left out.
    """
    try:
        record = records.read_record(storage.join(folder, POISONS), needs_seal=True)
        if record["key"] != key:
            return [], False
        complete = bool(record["complete"])
        if complete:
            read_samples(storage.join(folder, SAMPLES))
    except InputError:
        return [], False
    found: list[Poison] = []
    for told in record["poisons"]:
        own = Poison(**told)
        if own.picture is not None:
            path = storage.join(folder, PICTURES, own.picture)
            if not storage.exists(path) or mark_of(storage.read_bytes(path)).digest != own.digest:
                return found, False
        found.append(own)
    return found, complete


def _with_picture(data: TrainingSet) -> np.ndarray:
    """Returns which rows have a picture that training reads, bool (n,)."""
    found = data.streamed
    return np.zeros(len(data.sample_ids), dtype=bool) if found is None else np.asarray(found.present)


def labels_after(data: TrainingSet, output: Output, poisons: Sequence[Poison]) -> np.ndarray:
    """Returns the labels of the training set with those of the poisons, bool (n, L)."""
    assert output.vocabulary is not None
    truth = truth_of(data, output).copy()
    place: Mapping[str, int] = {name: row for row, name in enumerate(data.sample_ids)}
    for own in poisons:
        if own.labels != own.labels_before:
            truth[place[own.sample_id]] = [label in own.labels for label in output.vocabulary.labels]
    return truth
