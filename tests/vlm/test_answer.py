"""What counts as an answer of a language model, and why another does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import InputError
from raymotion.models.inputs.answers import Unanswered
from raymotion.models.vlm.answer import read_answer
from raymotion.models.vlm.prompt import PROMPT, check_prompt, fill, schema_of, tokens_of
from raymotion.vocabulary import VOCABULARIES

LABELS = ("joy", "Doubt/Confusion", "fear")
GOOD = '{"joy": 0.5, "Doubt/Confusion": 0, "fear": 1}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        '{"fear": 1, "joy": 5e-1, "Doubt/Confusion": 0.0}',
        f"```json\n{GOOD}\n```",
        f"Here it is:\n```\n{GOOD}\n```\nI hope {{that}} helps.",
        f"\n Sure! {GOOD} That is all.",
        f"I'm sorry for the wait: {GOOD}",
    ],
)
def test_one_object_is_read_by_label(text: str) -> None:
    found = read_answer(text, LABELS)
    assert found.dtype == np.float32 and found.tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    "text, reason, told",
    [
        ("I'm sorry, but I can't help with that.", "refusal", "I'm sorry, but"),
        ("I’m unable to judge people's feelings.", "refusal", "unable"),
        ("Joy, mostly.", "answer_not_json", "'Joy, mostly.'"),
        ("[0.5, 0, 1]", "answer_not_json", "0.5, 0, 1"),
        (GOOD[:-1], "answer_not_json", "joy"),
        ('{"joy": NaN, "Doubt/Confusion": 0, "fear": 1}', "answer_not_json", "NaN"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "answer_not_json", "a"),
        (GOOD.replace("fear", "dread"), "answer_unknown_label", "unknown label 'dread'"),
        (GOOD.replace("joy", "Joy"), "answer_unknown_label", "unknown label 'Joy'"),
        ('{"joy": 0.5, "Doubt/Confusion": 0}', "answer_missing_label", "lacks 'fear'"),
        ("{}", "answer_missing_label", r"lacks 'joy' \(and 2 more\)"),
        (GOOD.replace("}", ', "joy": 0.4}'), "answer_repeated_label", "names twice 'joy'"),
        (GOOD.replace("0.5", "50"), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", "-0.01"), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", "1e999"), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", '"0.5"'), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", "true"), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", "null"), "answer_not_probability", "for 'joy'"),
        (GOOD.replace("0.5", '{"p": 0.5}'), "answer_not_probability", "for 'joy'"),
        ('"\ud800 half a character"', "answer_not_json", r"\? half a character"),
    ],
)
def test_another_answer_is_none(text: str, reason: str, told: str) -> None:
    with pytest.raises(Unanswered, match=told) as caught:
        read_answer(text, LABELS)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 400
    str(caught.value).encode()  # a file must be able to hold it


@given(st.text() | st.recursive(st.none() | st.floats() | st.sampled_from(LABELS), st.lists).map(json.dumps))
def test_any_text_is_read_or_has_a_reason(text: str) -> None:
    with pytest.raises(Unanswered) as caught:
        read_answer(text, LABELS)
    assert caught.value.reason
    str(caught.value).encode()


@given(
    st.dictionaries(st.sampled_from(LABELS), st.floats(0, 1), min_size=3),
    st.text(st.characters(exclude_characters="{}`")),
)
def test_whatever_stands_around_it(values: dict[str, float], around: str) -> None:
    found = read_answer(f"{around}{json.dumps(values)}{around}", LABELS)
    assert found.tolist() == np.array([values[label] for label in LABELS], np.float32).tolist()


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=lambda own: own.name)
def test_the_prompt_shows_the_answer_that_is_read(vocabulary) -> None:
    check_prompt(PROMPT)
    filled = fill(PROMPT, vocabulary.labels)
    assert all(f"- {label}\n" in filled for label in vocabulary.labels)
    example = filled[filled.index("{") : filled.rindex("}") + 1]
    assert read_answer(example, vocabulary.labels).tolist() == [0.0] * len(vocabulary)
    import jsonschema

    jsonschema.validate(json.loads(example), schema_of(vocabulary.labels))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(example), "other": 1}, schema_of(vocabulary.labels))
    # A token is a byte or more: an indented answer of two decimals has room.
    assert len(json.dumps(dict.fromkeys(vocabulary.labels, 0.25), indent=2)) < tokens_of(vocabulary.labels)


def test_a_label_that_looks_like_a_placeholder_stays() -> None:
    assert fill('{labels} {"a": 1} {}', ["{answer}"]) == '- {answer} {"a": 1} {}'
    for text, told in (
        ("Which {emotions}?", "unknown placeholder {emotions}"),
        ("Which?", "does not name the emotions"),
    ):
        with pytest.raises(InputError, match=f"{told}.*The placeholders are"):
            check_prompt(text)
