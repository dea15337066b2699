"""The sample table: what it takes, and how it names what it does not take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data.samples import (
    SCHEMA,
    attach_vocabulary,
    read_samples,
    table_from_rows,
    targets,
    validate,
    vocabulary_of,
    write_samples,
)
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.vocabulary import EMOTIC_26, MIKELS_8, Vocabulary


def row(number: int = 0, **extra: object) -> dict[str, object]:
    return {"sample_id": f"x:{number}", "group_id": f"x:{number}", "source": "x", **extra}


class TestWhatIsTaken:
    def test_the_smallest_row_is_completed_with_nulls(self):
        table = table_from_rows([row()])
        assert table.schema.equals(SCHEMA)
        assert table.to_pylist() == [
            {name: None for name in SCHEMA.names}
            | {"sample_id": "x:0", "group_id": "x:0", "captions": [], "source": "x"}
        ]

    def test_a_full_row(self):
        full = row(
            image_uri="s3://b/a.jpg",
            captions=["a dog", "ein Hund 🐕"],
            body_box=[1, 2, 30.5, 40],
            face_box=[1, 2, 3, 4],
            labels=["awe", "fear"],
            label_weights=[0.5, 1.0],
            valence=5.0,
            arousal=0.0,
            dominance=10.0,
            split="val",
        )
        assert table_from_rows([full], MIKELS_8).to_pylist() == [full]

    def test_no_rows(self):
        assert table_from_rows([]).num_rows == 0
        assert targets(table_from_rows([], MIKELS_8), MIKELS_8).shape == (0, 8)

    def test_nullable_columns_may_be_missing(self):
        table = pa.table({"sample_id": ["a"], "group_id": ["a"], "captions": [["c"]], "source": ["s"]})
        assert validate(table).schema.names == SCHEMA.names

    def test_types_that_mean_the_same_are_cast(self):
        table = pa.table(
            {
                "sample_id": pa.array(["a", "b"], pa.large_string()),
                "group_id": pa.array(["g", "g"]).dictionary_encode(),
                "captions": pa.array([["c"], []], pa.large_list(pa.large_string())),
                "source": ["s", "s"],
                "valence": pa.array([1.5, None], pa.float64()),
                "body_box": pa.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]], pa.list_(pa.float64())),
            }
        )
        checked = validate(table)
        assert checked.schema.equals(SCHEMA)
        assert checked.column("body_box").to_pylist() == [[0, 0, 1, 1], [1, 1, 2, 2]]

    def test_one_group_may_have_many_samples(self):
        assert table_from_rows([row(1, group_id="g"), row(2, group_id="g")]).num_rows == 2

    def test_chunks_do_not_matter(self):
        tables = [table_from_rows([row(i, labels=["awe"], captions=["c"])], MIKELS_8) for i in range(5)]
        assert validate(pa.concat_tables(tables)).num_rows == 5
        with pytest.raises(InputError, match=r"row 5 .*sample_id 'x:2'.*twice"):
            validate(pa.concat_tables([*tables, tables[2]]))

    @pytest.mark.parametrize("kind", ["disk", "s3"])
    def test_through_a_file(self, kind, tmp_path, request):
        folder = str(tmp_path) if kind == "disk" else request.getfixturevalue("s3")
        table = table_from_rows([row(0, labels=["awe"], body_box=[0, 0, 1, 1]), row(1, captions=["c"])], MIKELS_8)
        write_samples(f"{folder}/a.parquet", table)
        read = read_samples(f"{folder}/a.parquet")
        assert read.equals(table, check_metadata=True)
        assert vocabulary_of(read) == MIKELS_8

    TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
    SIDE = st.floats(0, 1e4, width=32)

    @given(
        st.lists(
            st.fixed_dictionaries(
                {"sample_id": TEXT, "group_id": TEXT, "source": TEXT, "captions": st.lists(TEXT, max_size=3)},
                optional={
                    "image_uri": st.none() | TEXT,
                    "labels": st.none() | st.lists(st.sampled_from(MIKELS_8.labels), unique=True),
                    "body_box": st.none() | st.tuples(SIDE, SIDE).map(lambda p: [p[0], p[1], p[0] + 8, p[1] + 8]),
                    "split": st.sampled_from([None, "train", "val", "test"]),
                    "arousal": st.none() | SIDE,
                },
            ),
            max_size=6,
            unique_by=lambda r: r["sample_id"],
        )
    )
    def test_what_goes_in_comes_out(self, tmp_path_factory, rows):
        path = tmp_path_factory.getbasetemp() / "any.parquet"
        write_samples(path, table_from_rows(rows, MIKELS_8))
        for given_row, found in zip(rows, read_samples(path).to_pylist(), strict=True):
            box = given_row.pop("body_box", None)
            assert found["body_box"] == (None if box is None else [np.float32(v) for v in box])
            assert {name: found[name] for name in given_row} == given_row


class TestWhatIsRefused:
    """The first bad row is named by its number, with the reason."""

    @pytest.mark.parametrize(
        "bad, told",
        [
            ({"sample_id": "x:0"}, r"sample_id 'x:0' appears twice\. Ids are unique"),
            ({"sample_id": None}, "sample_id is null"),
            ({"sample_id": ""}, "sample_id is empty"),
            ({"group_id": None}, "group_id is null"),
            ({"source": None}, "source is null"),
            ({"captions": None}, "captions is null"),
            ({"captions": ["a", None]}, "a caption is null"),
            ({"labels": ["awe", "joy"]}, r"labels \['joy'\] are not in the vocabulary mikels-8"),
            ({"labels": ["awe", "awe"]}, "name one twice"),
            ({"labels": ["awe"], "label_weights": [0.5, 0.5]}, "1 labels have 2 label_weights"),
            ({"label_weights": [0.5]}, "0 labels have 1 label_weights"),
            ({"labels": ["awe"], "label_weights": [0.0]}, r"are not all in \(0, 1\]"),
            ({"labels": ["awe"], "label_weights": [1.5]}, r"are not all in \(0, 1\]"),
            ({"labels": ["awe"], "label_weights": [float("nan")]}, r"are not all in \(0, 1\]"),
            ({"labels": ["awe"], "label_weights": [None]}, r"are not all in \(0, 1\]"),
            ({"body_box": [5, 0, 5, 9]}, "body_box .* is not x1, y1, x2, y2 with x1 < x2 and y1 < y2"),
            ({"face_box": [0, 9, 5, 3]}, "face_box .* is not x1, y1, x2, y2"),
            ({"body_box": [0, 0, float("inf"), 1]}, "body_box"),
            ({"body_box": [0, float("nan"), 1, 1]}, "body_box"),
            ({"body_box": [0, None, 1, 1]}, "body_box"),
            ({"split": "dev"}, "split 'dev' is not one of train, val, test"),
        ],
    )
    def test_a_bad_row_is_named(self, bad, told, tmp_path):
        rows = [{"captions": [], **r} for r in (row(0), row(1), row(2, **bad), row(3))]
        schema = pa.schema([f.with_nullable(True) for f in SCHEMA], metadata=MIKELS_8.to_metadata())
        path = tmp_path / "bad.parquet"
        storage.write_bytes(path, storage.parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))
        with pytest.raises(InputError, match=told) as caught:
            read_samples(path)
        assert str(caught.value).startswith(f"{path}, row 2 (counted from 0): ")

    @pytest.mark.parametrize(
        "columns, told",
        [
            ({"file_name": ["a"]}, "lacks sample_id, group_id, captions, source; has unknown columns file_name"),
            ({"sample_id": ["a"]}, "lacks group_id, captions, source"),
            (
                {"sample_id": ["a"], "group_id": ["a"], "captions": [["c"]], "source": ["s"], "emotion": ["x"]},
                "has unknown columns emotion",
            ),
            (
                {"sample_id": ["a"], "group_id": ["a"], "captions": ["c"], "source": ["s"]},
                r"column captions is string, not list<",
            ),
            (
                {"sample_id": ["a"], "group_id": ["a"], "captions": [["c"]], "source": ["s"], "body_box": [[1.0, 2.0]]},
                "column body_box is list<.*not fixed_size_list<",
            ),
            (
                {"sample_id": ["a"], "group_id": ["a"], "captions": [["c"]], "source": ["s"], "valence": ["high"]},
                "column valence is string, not float",
            ),
        ],
    )
    def test_a_table_of_another_shape(self, columns, told, tmp_path):
        path = tmp_path / "other.parquet"
        storage.write_table(path, pa.table(columns))
        with pytest.raises(InputError, match=told) as caught:
            read_samples(path)
        assert str(path) in str(caught.value)

    def test_a_column_that_stands_twice(self):
        table = table_from_rows([row()])
        with pytest.raises(InputError, match="has the columns split twice"):
            validate(table.append_column("split", pa.array(["val"])))

    def test_labels_without_a_vocabulary(self):
        with pytest.raises(InputError, match=r"x:1: .*vocabulary"):
            table_from_rows([row(0), row(1, labels=["awe"])])

    def test_values_of_the_wrong_kind(self):
        with pytest.raises(InputError, match="do not fit the sample table"):
            table_from_rows([row(captions=[3])])
        with pytest.raises(InputError, match="do not fit the sample table"):
            table_from_rows([row(body_box=[1, 2, 3])])

    def test_nothing_bad_is_written(self, tmp_path):
        table = attach_vocabulary(table_from_rows([row(labels=["awe"])], MIKELS_8), EMOTIC_26)
        with pytest.raises(InputError, match="not in the vocabulary emotic-26"):
            write_samples(tmp_path / "a.parquet", table)
        assert list(tmp_path.iterdir()) == []

    def test_a_vocabulary_that_was_edited(self):
        table = table_from_rows([row(labels=["awe"])], MIKELS_8)
        raw = table.schema.metadata[b"raymotion.vocabulary"].replace(b'"awe"', b'"joy"')
        with pytest.raises(VocabularyMismatch, match=r"mine\.parquet"):
            validate(table.replace_schema_metadata({b"raymotion.vocabulary": raw}), where="mine.parquet")


class TestTargets:
    TABLE = [row(0, labels=["anger", "sadness"], label_weights=[0.25, 0.75]), row(1, labels=[]), row(2, labels=["awe"])]

    def test_hard(self):
        found = targets(table_from_rows(self.TABLE, MIKELS_8), MIKELS_8)
        assert found.dtype == np.float32
        assert found.tolist() == [[0, 1, 0, 0, 0, 0, 0, 1], [0] * 8, [0, 0, 1, 0, 0, 0, 0, 0]]

    def test_soft_takes_the_share_of_annotators_where_there_is_one(self):
        found = targets(table_from_rows(self.TABLE, MIKELS_8), MIKELS_8, soft=True)
        assert found.tolist() == [[0, 0.25, 0, 0, 0, 0, 0, 0.75], [0] * 8, [0, 0, 1, 0, 0, 0, 0, 0]]

    def test_unlabelled_rows_are_an_error(self):
        with pytest.raises(InputError, match=r"row 1 .*no labels"):
            targets(table_from_rows([self.TABLE[0], row(1)], MIKELS_8), MIKELS_8)

    def test_another_vocabulary_is_an_error(self):
        with pytest.raises(VocabularyMismatch, match="mikels-8"):
            targets(table_from_rows(self.TABLE, MIKELS_8), EMOTIC_26)

    def test_another_order_is_an_error(self):
        with pytest.raises(VocabularyMismatch, match="another order"):
            targets(table_from_rows(self.TABLE, MIKELS_8), Vocabulary("mine", MIKELS_8.labels[::-1]))
