"""The prompt, and the JSON that it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from raymotion.errors import InputError

PROMPT = """\
Which emotions does this picture evoke in the people who see it?

Give each of these emotions the probability, from 0 to 1, that a viewer would name it. They are independent of each
other: several may be likely, or none.

{labels}

Answer with one JSON object and nothing else. Its keys are all of these emotions, each exactly once, and its values are
the probabilities, in this form:
{answer}
"""
PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("labels", "answer")
# Tokens of an answer besides the bytes of its labels: quotes, number, comma and white space of each, and of the whole.
EACH, WHOLE = 16, 64


def check_prompt(text: str, path: object = None) -> None:
    """Raises an `InputError` unless the labels have a place in the text, and it has no unknown placeholder."""
    remedy = f"The placeholders are {' and '.join(f'{{{name}}}' for name in PLACEHOLDERS)}."
    found = PLACEHOLDER.findall(text)
    for name in found:
        if name not in PLACEHOLDERS:
            raise InputError(f"the prompt has the unknown placeholder {{{name}}}", path=path, remedy=remedy)
    if not found:
        raise InputError("the prompt does not name the emotions", path=path, remedy=remedy)


def fill(text: str, labels: Sequence[str]) -> str:
    """Returns the prompt with the labels: `{labels}` as a list, `{answer}` as JSON with a 0 for each."""
    # In one pass, because a label may look like a placeholder.
    values = {
        "labels": "\n".join(f"- {label}" for label in labels),
        "answer": json.dumps(dict.fromkeys(labels, 0.0), ensure_ascii=False),
    }
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)


def schema_of(labels: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON schema of an answer.

    Without minimum and maximum, which several servers cannot constrain numbers to, and refuse.
    """
    return {
        "type": "object",
        "properties": {label: {"type": "number"} for label in labels},
        "required": list(labels),
        "additionalProperties": False,
    }


def tokens_of(labels: Sequence[str]) -> int:
    """Returns an upper bound of the tokens of an answer."""
    return WHOLE + sum(EACH + len(label.encode()) for label in labels)
