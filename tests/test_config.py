"""Settings: where they come from, in which order, and what a mistake in them is called."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from raymotion.config import (
    Settings,
    digest_of,
    load_settings,
    merge,
    parse_assignments,
    read_yaml,
    require_same_settings,
)
from raymotion.errors import InputError, SettingsMismatch


class Data(Settings):
    samples: str
    batch: int = Field(default=8, ge=1)


class Run(Settings):
    data: Data
    epochs: int = 3
    rate: float = 1e-3
    tags: list[str] = []


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


class TestLayers:
    def test_options_lie_over_the_file_and_assignments_over_both(self, file):
        path = file("data: {samples: a.parquet, batch: 4}\nepochs: 1\nrate: 0.5\n")
        run = load_settings(
            Run, file=path, options={"epochs": 2, "rate": None}, assignments=["data.batch=16", "tags=[x, y]"]
        )
        assert run == Run(data=Data(samples="a.parquet", batch=16), epochs=2, rate=0.5, tags=["x", "y"])

    def test_an_option_that_was_not_given_changes_nothing(self, file):
        assert load_settings(Run, file=file("data: {samples: a}\nepochs: 7"), options={"epochs": None}).epochs == 7

    def test_no_file_at_all(self):
        assert load_settings(Run, assignments=["data.samples=a.parquet"]).epochs == 3

    def test_from_an_object_store(self, s3):
        from raymotion import storage

        storage.write_text(f"{s3}/run.yaml", "data: {samples: a}\n")
        assert load_settings(Run, file=f"{s3}/run.yaml").data.samples == "a"

    def test_settings_do_not_change_afterwards(self):
        run = Run(data=Data(samples="a"))
        with pytest.raises(ValidationError, match="frozen"):
            run.epochs = 9

    @pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("0.01", 0.01), ("3", 3.0)])
    def test_numbers_as_people_write_them(self, text, value):
        # YAML 1.1 reads 1e-4 as a string.
        assert load_settings(Run, assignments=["data.samples=a", f"rate={text}"]).rate == value


class TestMistakes:
    @pytest.mark.parametrize(
        "text, told",
        [
            ("epochs: 1\nrate: [1, 2\ntags: x\n", r"run\.yaml: is not YAML: .*\(line 3\)"),
            ("a: 1\n\tb: 2\n", r"run\.yaml: is not YAML: .*\(line 2\)"),
            ("- a\n- b\n", r"run\.yaml: holds a list, not a mapping"),
            ("just words", r"run\.yaml: holds a str, not a mapping"),
            ("when: 2024-13-45\n", r"run\.yaml: is not YAML"),
            ("a: !!python/object/apply:os.getcwd []\n", r"run\.yaml: is not YAML: could not determine a constructor"),
            (b"name: caf\xe9\n", r"run\.yaml: is not UTF-8 text \(byte 9\)"),
        ],
    )
    def test_a_file_that_is_no_settings_file(self, file, text, told):
        with pytest.raises(InputError, match=told):
            read_yaml(file(text))

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.yaml: no such file"):
            read_yaml(tmp_path / "none.yaml")

    def test_an_empty_file_is_an_empty_mapping(self, file):
        assert read_yaml(file("")) == read_yaml(file("# nothing\n")) == {}

    @pytest.mark.parametrize(
        "text, told",
        [
            (
                "data: {samples: a}\nepoch: 3",
                r"run\.yaml: there is no setting epoch \(there are: data, epochs, rate, tags\)",
            ),
            ("data: {samples: a, batchsize: 3}", r"there is no setting data\.batchsize \(there are: samples, batch\)"),
            ("epochs: 3", r"run\.yaml: setting data is missing"),
            ("data: {batch: 3}", r"setting data\.samples is missing"),
            ("data: {samples: a, batch: 0}", r"setting data\.batch = 0: .*greater than or equal to 1"),
            ("data: {samples: a, batch: many}", r"setting data\.batch = 'many': .*valid integer"),
            ("data: {samples: a}\nepochs: x\nrate: y", r"epochs = 'x'.*\(and 1 more\)"),
            ("data: 3", r"setting data = 3"),
        ],
    )
    def test_a_wrong_setting_is_named_with_file_and_reason(self, file, text, told):
        with pytest.raises(InputError, match=told):
            load_settings(Run, file=file(text))

    def test_our_own_reasons_stand_without_pydantics_prefix(self):
        class Interval(Settings):
            low: int = 0
            high: int = 9

            @field_validator("low")
            @classmethod
            def _even(cls, value):
                if value % 2:
                    raise ValueError("an odd number")
                return value

            @model_validator(mode="after")
            def _ordered(self):
                if self.low > self.high:
                    raise ValueError("low is above high")
                return self

        for options, told in (({"low": 3}, "setting low = 3: an odd number"), ({"low": 10}, "low is above high")):
            with pytest.raises(InputError) as caught:
                load_settings(Interval, options=options)
            assert str(caught.value) == told


class TestAssignments:
    @pytest.mark.parametrize(
        "assignments, expected",
        [
            (["epochs=3"], {"epochs": 3}),
            (["data.batch=3", "data.samples=a=b.parquet"], {"data": {"batch": 3, "samples": "a=b.parquet"}}),
            (["x=true", "y=null", "z=[1, 2]"], {"x": True, "y": None, "z": [1, 2]}),
            (["x="], {"x": ""}),
            (["x=s3://bucket/a: b"], {"x": {"s3://bucket/a": "b"}}),
            (["x=*.jpg"], {"x": "*.jpg"}),
            (["x=2024-13-45"], {"x": "2024-13-45"}),
            (["x=1", "x=2"], {"x": 2}),
            ([" a . b =1"], {"a": {"b": 1}}),
            ([], {}),
        ],
    )
    def test_values_are_read_as_yaml(self, assignments, expected):
        assert parse_assignments(assignments) == expected

    @pytest.mark.parametrize("assignment", ["epochs", "=3", "a..b=1", ".a=1", "a.=1", ""])
    def test_what_is_no_assignment(self, assignment):
        with pytest.raises(InputError, match="is not of the form name=value"):
            parse_assignments([assignment])

    def test_a_value_has_no_parts(self):
        with pytest.raises(InputError, match="data was set to a value before"):
            parse_assignments(["data=3", "data.batch=4"])

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.integers()), max_size=6))
    def test_each_value_stands_where_its_name_says(self, entries):
        parsed = parse_assignments([f"{outer}.{inner}={value}" for outer, inner, value in entries])
        last = {(outer, inner): value for outer, inner, value in entries}
        assert {(o, i): v for o, inners in parsed.items() for i, v in inners.items()} == last

    @given(st.text())
    def test_any_text_is_parsed_or_refused(self, text):
        try:
            parsed = parse_assignments([text])
        except InputError:
            return
        assert isinstance(parsed, dict) and len(parsed) == 1

    @given(st.text())
    def test_any_value_keeps_its_name(self, text):
        assert list(parse_assignments([f"a={text}"])) == ["a"]


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
TREES = st.dictionaries(
    st.sampled_from("abcd"),
    st.recursive(SCALARS, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3), max_leaves=8),
    max_size=4,
)


def leaves(tree: dict, at: tuple[str, ...] = ()) -> dict:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, (*at, key)) if isinstance(value, dict) else {(*at, key): value}
    return found


class TestMerge:
    @given(TREES, TREES)
    def test_everything_of_the_upper_layer_stands(self, lower, upper):
        merged = leaves(merge(lower, upper))
        assert leaves(upper).items() <= merged.items()

    @given(TREES, TREES)
    def test_what_the_upper_layer_does_not_touch_stays(self, lower, upper):
        merged, above = leaves(merge(lower, upper)), leaves(upper)
        for path, value in leaves(lower).items():
            covered = any(path[: len(other)] == other or other[: len(path)] == path for other in above)
            if not covered and not _replaced(upper, path):
                assert merged[path] == value

    @given(TREES, TREES, TREES)
    def test_layers_may_be_laid_one_by_one(self, a, b, c):
        assert merge(a, b, c) == merge(merge(a, b), c)

    def test_layers_are_not_changed(self):
        lower, upper = {"a": {"b": 1}}, {"a": {"c": 2}}
        assert merge(lower, upper) == {"a": {"b": 1, "c": 2}}
        assert (lower, upper) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def _replaced(upper: dict, path: tuple[str, ...]) -> bool:
    """Whether `upper` holds a mapping (perhaps an empty one) at `path`, or a value above it."""
    level = upper
    for name in path:
        if not isinstance(level, dict):
            return True
        if name not in level:
            return False
        level = level[name]
    return True


class TestDigest:
    def test_it_is_the_sha256_of_canonical_json(self):
        # printf '{"a":[1,2],"b":"\u00e9"}' | sha256sum, with the e-acute as a backslash escape
        assert digest_of({"b": "é", "a": [1, 2]}) == "4f4995260c41bd0d"

    def test_every_setting_counts_but_those_left_out(self):
        run, other = Run(data=Data(samples="a")), Run(data=Data(samples="a"), epochs=4)
        assert run.digest() != other.digest()
        assert run.digest(without=["epochs"]) == other.digest(without=["epochs"])
        assert run.digest() == Run(data=Data(samples="a", batch=8), epochs=3).digest()

    @given(TREES)
    def test_neither_order_nor_a_round_trip_through_yaml_or_json_matters(self, tree):
        turned = dict(reversed(list(tree.items())))
        assert digest_of(turned) == digest_of(tree) == digest_of(json.loads(json.dumps(tree)))
        assert digest_of(yaml.safe_load(yaml.safe_dump(tree))) == digest_of(tree)


class TestSameSettings:
    def test_a_difference_is_shown_with_both_values_and_the_folder(self):
        old = {"seed": 0, "optimiser": {"lr": 0.1, "epochs": 3}, "gone": True}
        new = {"seed": 0, "optimiser": {"lr": 0.2, "epochs": 3}, "workers": 2}
        with pytest.raises(SettingsMismatch) as caught:
            require_same_settings(old, new, where="runs/a", remedy="Take another.")
        assert str(caught.value) == (
            "runs/a: was made with other settings (optimiser.lr: 0.1 there, 0.2 here; "
            "gone: True there, (not set) here; workers: (not set) there, 2 here). Take another."
        )

    def test_of_many_differences_five_are_shown(self):
        with pytest.raises(SettingsMismatch) as caught:
            require_same_settings(dict.fromkeys("abcdefg", 1), dict.fromkeys("abcdefg", 2), where="x")
        assert str(caught.value).count("1 there, 2 here") == 5 and "; ...)" in str(caught.value)

    def test_what_may_differ_does_not_count(self):
        old, new = {"data": {"samples": "a", "seed": 1}}, {"data": {"samples": "b", "seed": 1}}
        require_same_settings(old, new, where="x", ignore=("data.samples",))
        with pytest.raises(SettingsMismatch, match=r"data\.seed: 1 there, 2 here"):
            require_same_settings(old, {"data": {"samples": "b", "seed": 2}}, where="x", ignore=("data.samples",))

    def test_what_was_written_and_read_again_is_the_same(self):
        now = {"sizes": (1, 2), "name": None, "inner": {"a": 1.5}}
        require_same_settings(json.loads(json.dumps(now)), now, where="x")
        require_same_settings({"sizes": [1, 2], "inner": {"a": 1.5}}, now, where="x")  # not set is None

    @given(TREES, TREES)
    def test_only_equal_settings_pass(self, old, new):
        def values(tree):
            return {path: value for path, value in leaves(tree).items() if value is not None}

        if values(old) == values(new):
            require_same_settings(old, new, where="x")
        else:
            with pytest.raises(SettingsMismatch):
                require_same_settings(old, new, where="x")
