"""Order, fingerprint and travel of the vocabularies. The lists below are typed from the publications, not imported."""

from __future__ import annotations

import csv
import io
from ast import literal_eval
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.vocabulary import (
    EMOTIC_26,
    MIKELS_8,
    SOCRATIS_29,
    VALENCE_3,
    VOCABULARIES,
    Vocabulary,
    get_vocabulary,
    valence_band,
)

# Kosti et al. 2017, as mat2py.py lists them.
EMOTIC = """Affection, Anger, Annoyance, Anticipation, Aversion, Confidence, Disapproval, Disconnection, Disquietment,
Doubt/Confusion, Embarrassment, Engagement, Esteem, Excitement, Fatigue, Fear, Happiness, Pain, Peace, Pleasure,
Sadness, Sensitivity, Suffering, Surprise, Sympathy, Yearning"""

# Images that carry each label in the public system's cleaned_data.csv.
SOCRATIS_IMAGES = dict(
    happy=1390, sad=728, excited=619, curious=610, interested=555, confused=410, angry=344, intrigued=303, worried=224,
    concerned=222, proud=204, hopeful=192, inspired=191, scared=179, bored=172, anger=165, good=158, neutral=156,
    calm=151, upset=147, disgusted=131, fear=131, annoyed=130, beautiful=122, nostalgic=122, joy=122, impressed=121,
    amazed=114, awe=108,
)  # fmt: skip


def test_emotic_is_in_published_order():
    assert list(EMOTIC_26.labels) == [name.strip() for name in EMOTIC.replace("\n", " ").split(",")]


def test_socratis_is_the_published_set_sorted():
    assert list(SOCRATIS_29.labels) == sorted(SOCRATIS_IMAGES)
    assert sum(SOCRATIS_IMAGES.values()) == 8221


def test_socratis_has_every_label_of_the_real_table(shared_data):
    text = storage.read_text(shared_data / "socratis" / "cleaned_data.csv")
    counts = Counter(label for row in csv.DictReader(io.StringIO(text)) for label in literal_eval(row["emotions"]))
    assert counts == SOCRATIS_IMAGES
    assert set(counts) == set(SOCRATIS_29.labels)


def test_mikels_and_valence():
    assert MIKELS_8.labels == ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
    assert VALENCE_3.labels == ("negative", "neutral", "positive")


@pytest.mark.parametrize(
    "name, count, fingerprint",
    [
        ("emotic-26", 26, "bab43e33fbcaadf9"),
        ("socratis-29", 29, "67bf0deded7e5454"),
        ("mikels-8", 8, "dfb68bab5dada258"),
        ("valence-3", 3, "e353a148fa24ac60"),
    ],
)
def test_the_order_is_fixed_for_ever(name, count, fingerprint):
    """Files out there carry these. If this fails, the list was changed: give the new list a new name instead."""
    vocabulary = get_vocabulary(name)
    assert (len(vocabulary), vocabulary.fingerprint) == (count, fingerprint)


def test_there_are_no_others():
    assert list(VOCABULARIES) == ["emotic-26", "socratis-29", "mikels-8", "valence-3"]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match=r"'socratis'.*emotic-26, socratis-29, mikels-8, valence-3"):
        get_vocabulary("socratis")


class TestEncoding:
    @given(st.sets(st.sampled_from(SOCRATIS_29.labels)))
    def test_round_trip(self, chosen):
        target = SOCRATIS_29.encode(chosen)
        assert target.shape == (29,) and target.dtype == np.float32
        assert target.sum() == len(chosen)
        assert SOCRATIS_29.decode(np.flatnonzero(target).tolist()) == sorted(chosen)

    def test_weights_stand_where_their_labels_stand(self):
        target = MIKELS_8.encode(["sadness", "anger"], [0.25, 0.5])
        assert target.tolist() == [0, 0.5, 0, 0, 0, 0, 0, 0.25]

    def test_a_foreign_label_is_named_with_the_vocabulary(self):
        with pytest.raises(InputError, match=r"'joy'.*vocabulary mikels-8"):
            MIKELS_8.encode(["anger", "joy"])

    def test_weights_that_do_not_fit(self):
        with pytest.raises(InputError, match="2 labels have 1 weights"):
            MIKELS_8.encode(["anger", "awe"], [1.0])

    def test_decode_gives_vocabulary_order_once_each(self):
        assert MIKELS_8.decode([7, 1, 1]) == ["anger", "sadness"]


LABELS = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12, unique=True)


class TestTravel:
    @given(st.text(), LABELS)
    def test_through_arrow_metadata(self, name, labels):
        vocabulary = Vocabulary(name, tuple(labels))
        schema = pa.schema([("x", pa.int8())], metadata=vocabulary.to_metadata())
        table = pa.table({"x": pa.array([1], pa.int8())}, schema=schema)
        read = pa.ipc.open_stream(_stream(table)).read_all()
        assert Vocabulary.from_metadata(read.schema.metadata) == vocabulary

    def test_through_a_parquet_file(self, tmp_path):
        table = pa.table({"x": [1]}).replace_schema_metadata(EMOTIC_26.to_metadata())
        storage.write_table(tmp_path / "x.parquet", table)
        assert Vocabulary.from_metadata(storage.read_table(tmp_path / "x.parquet").schema.metadata) == EMOTIC_26

    @given(LABELS, st.randoms())
    def test_fingerprints_tell_orders_apart(self, labels, random):
        other = labels[:]
        random.shuffle(other)
        same = Vocabulary("a", tuple(labels)).fingerprint == Vocabulary("b", tuple(other)).fingerprint
        assert same == (labels == other)

    def test_none_where_there_is_none(self):
        assert Vocabulary.from_metadata(None) is None
        assert Vocabulary.from_metadata({b"pandas": b"{}"}) is None

    def test_edited_labels_are_caught(self):
        value = MIKELS_8.to_dict()
        value["labels"][0], value["labels"][1] = value["labels"][1], value["labels"][0]
        with pytest.raises(VocabularyMismatch, match=r"x\.parquet: .*mikels-8.*restore them"):
            Vocabulary.from_dict(value, where="x.parquet")

    @pytest.mark.parametrize(
        "value",
        [{}, {"name": "x"}, {"labels": ["a"]}, {"name": "x", "labels": None}, {"name": "x", "labels": "abc"}, [], "x"],
    )
    def test_damaged_records_are_input_errors(self, value):
        with pytest.raises(InputError, match=r"_job\.json"):
            Vocabulary.from_dict(value, where="_job.json")

    def test_damaged_metadata_are_input_errors(self):
        with pytest.raises(InputError, match=r"x\.parquet"):
            Vocabulary.from_metadata({b"raymotion.vocabulary": b'{"name'}, where="x.parquet")


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


class TestMismatch:
    def test_both_are_named(self):
        with pytest.raises(VocabularyMismatch) as caught:
            SOCRATIS_29.require_same(MIKELS_8, here="teacher/", there="labels/")
        for part in ("teacher/", "socratis-29", SOCRATIS_29.fingerprint, "labels/", "mikels-8", MIKELS_8.fingerprint):
            assert part in str(caught.value)

    def test_another_order_is_said_to_be_one(self):
        turned = Vocabulary("mine", MIKELS_8.labels[::-1])
        with pytest.raises(VocabularyMismatch, match="another order"):
            MIKELS_8.require_same(turned, here="a", there="b")

    def test_another_name_is_no_mismatch(self):
        MIKELS_8.require_same(Vocabulary("mine", MIKELS_8.labels), here="a", there="b")


@pytest.mark.parametrize("labels", [(), ("a", ""), ("a", "  "), ("a", "b", "a"), ("a", 3)])
def test_labels_that_can_not_be_a_vocabulary(labels):
    with pytest.raises(InputError, match="mine"):
        Vocabulary("mine", labels)


@pytest.mark.parametrize(
    "valence, band",
    [(0, "negative"), (39.999, "negative"), (40, "neutral"), (60, "neutral"), (60.001, "positive"), (100, "positive")],
)
def test_valence_bands_at_their_edges(valence, band):
    assert valence_band(valence) == band
    assert band in VALENCE_3


def test_valence_bands_can_be_set():
    assert valence_band(45, neutral=(48, 52)) == "negative"


@pytest.mark.parametrize("valence", [-0.1, 100.1, float("nan"), float("inf")])
def test_a_valence_off_the_scale(valence):
    with pytest.raises(InputError, match="between 0 and 100"):
        valence_band(valence)
