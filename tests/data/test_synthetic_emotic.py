"""The synthetic EMOTIC: formats that the public converter reads, streams that each tell something else."""

from __future__ import annotations

import ast
import csv
import io
import random

import numpy as np
import pytest
import scipy.io
from PIL import Image

from raymotion.data.synthetic.emotic import write_emotic
from raymotion.data.synthetic.emotic_labels import annotate, odds_of
from raymotion.data.synthetic.emotic_pictures import draw_picture, draw_traits
from raymotion.errors import InputError
from raymotion.vocabulary import EMOTIC_26


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("emotic")
    return root, write_emotic(root, 60, seed=4)


def flat(value):
    return np.array(value).flatten().tolist()


def read_by_position(path, split):
    """By position, as mat2py reads (section 1 of the study): labels and VAD of its split's layout."""
    people = []
    for ex in scipy.io.loadmat(path)[split][0]:
        size = [flat(v)[0] for v in flat(ex[2])[0]]
        for person in ex[4][0]:
            box = flat(person[0])
            if split == "train":
                labels = [flat(c)[0] for c in flat(flat(person[1])[0])]
                vad, gender = [flat(v)[0] for v in flat(person[2])[0]], person[3][0]
            else:
                labels = [flat(c)[0] for c in flat(person[2])]
                vad, gender = [flat(v)[0] for v in flat(person[4])[0]], person[5][0]
                assert len(person[1][0]) == len(person[3][0]) >= 2  # annotators of categories and of VAD
            x = [int(min(size[0], max(0, box[k]))) for k in (0, 2)]  # the first of the two values is the x limit
            y = [int(min(size[1], max(0, box[k]))) for k in (1, 3)]
            people.append((ex[1][0], ex[0][0], [x[0], y[0], x[1], y[1]], labels, vad, gender))
    return people


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_public_converter_reads_the_mat_file_by_position_and_finds_what_the_csv_says(made, split):
    root, report = made
    people = read_by_position(root / "Annotations" / "Annotations.mat", split)
    with open(root / "emotic_pre" / f"{split}.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(people) == len(rows) == report.splits[split] > 0
    for (folder, name, box, labels, vad, gender), row in zip(people, rows, strict=True):
        assert (folder, name, gender) == (row["Folder"], row["Filename"], row["Gender"])
        assert str(box) == row["BBox"] and (root / "emotic" / folder / name).is_file()
        assert labels == ast.literal_eval(row["Categorical_Labels"]) and labels
        assert vad == pytest.approx(ast.literal_eval(row["Continuous_Labels"]))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def files(name, seed):
        write_emotic(tmp_path / name, 12, seed, defects=0.5)
        return {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}

    first = files("a", 1)
    assert first == files("b", 1)
    other = files("a", 2)  # over the old one: nothing of it stays
    assert other.keys() != first.keys() or other != first
    assert other == files("c", 2)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "emotic").mkdir()
    (tmp_path / "emotic" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="not synthetic"):
        write_emotic(tmp_path, 5)
    assert (tmp_path / "emotic" / "mine.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("arguments", [{"persons": 0}, {"persons": 5, "defects": 1.5}, {"persons": 5, "kind": "xml"}])
def test_senseless_requests_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match="Choose"):
        write_emotic(tmp_path, **arguments)


def explained(inputs, outputs):
    """Share of the variance of `outputs` that a linear fit on the first half explains in the second."""
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    half = len(inputs) // 2
    fit = np.linalg.lstsq(inputs[:half], outputs[:half], rcond=None)[0]
    rest = outputs[half:] - inputs[half:] @ fit
    return 1 - rest.var() / outputs[half:].var()


def test_each_stream_shows_its_own_trait_and_hardly_another():
    rng = random.Random(3)
    seen, traits = [], []
    for _ in range(160):
        scene, body, face = (draw_traits(rng) for _ in range(3))
        picture, (person,) = draw_picture(scene, [(body, face, True)], rng)
        # As in a JPEG that is decoded again.
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        pixels = np.asarray(Image.open(buffer), dtype=float)
        row = [pixels.mean((0, 1))]
        for box in (person.body, person.face):
            x1, y1, x2, y2 = (int(v) for v in box)
            row.append(pixels[y1:y2, x1:x2].mean((0, 1)))
        seen.append(row)
        traits.append([scene[:3], body[:3], face[:3]])
    seen, traits = np.array(seen), np.array(traits)
    shares = np.array([[explained(seen[:, s], traits[:, t]) for t in range(3)] for s in range(3)])
    assert (np.diag(shares) > 0.7).all(), shares
    assert (shares[~np.eye(3, dtype=bool)] < 0.4).all(), shares


def test_a_union_of_more_annotators_has_more_labels_and_rare_ones_are_not_absent():
    rng = random.Random(5)
    traits = [[draw_traits(rng) for _ in range(3)] for _ in range(700)]
    one, five = np.zeros(26), np.zeros(26)
    for person in traits:
        draws = [set(annotate(person, rng)[0]) for _ in range(5)]
        assert all(draws)
        one += [label in draws[0] for label in EMOTIC_26.labels]
        five += [label in set.union(*draws) for label in EMOTIC_26.labels]
    assert (five > one).all()
    assert EMOTIC_26.labels[int(one.argmax())] == "Engagement" and 0.45 < one.max() / 700 < 0.65
    assert five.min() / 700 > 0.02
    assert np.isfinite(odds_of(traits[0])).all()
