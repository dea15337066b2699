"""Reads the answer of a language model: one JSON object with a probability for each label, or the reason why not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from raymotion.models.inputs.answers import Unanswered

# Characters of an answer in the quarantine.
SHOWN = 200
# How models begin a refusal in words. It only names the reason: an answer that is not JSON is no answer in any case.
REFUSAL = re.compile(
    r"\W*(sorry|as an ai\b|unfortunately, i|i (apologi[sz]e|can ?not|can['’]t|won['’]t)"
    r"|i( am|['’]m) (sorry|(really|very|so) sorry|unable|not able))",
    re.IGNORECASE,
)
FENCE = re.compile(r"```[a-z]*\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def read_answer(text: str, labels: Sequence[str]) -> np.ndarray:
    """Returns the probabilities (L,) float32 in an answer; a code fence or words around the JSON are passed over.

    Raises:
        Unanswered: it is no JSON object with each label once and a number from 0 to 1.
    """
    found = _object_in(text)
    if found is None:
        reason = "refusal" if REFUSAL.match(text) else "answer_not_json"
        raise Unanswered(
            reason, f"the answer is {'a refusal' if reason == 'refusal' else 'no JSON object'}: {start_of(text)}"
        )
    names = [name for name, _ in found]
    values = dict(found)
    for reason, told, wrong in (
        ("answer_repeated_label", "names twice", [name for name in values if names.count(name) > 1]),
        ("answer_unknown_label", "has the unknown label", [name for name in values if name not in labels]),
        ("answer_missing_label", "lacks", [label for label in labels if label not in values]),
        (
            "answer_not_probability",
            "has no number from 0 to 1 for",
            [n for n in labels if not _is_share(values.get(n))],
        ),
    ):
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise Unanswered(reason, f"the answer {told} {start_of(wrong[0], 60)}{more}: {start_of(text)}")
    return np.array([values[label] for label in labels], dtype=np.float32)


def start_of(text: str, length: int = SHOWN) -> str:
    """Returns the start of a text in one line, quoted; never half a character, which no file could hold."""
    line = " ".join(text.split()).encode("utf-8", "replace").decode()
    return repr(line if len(line) <= length else f"{line[:length]}...")


def _object_in(text: str) -> list[tuple[str, Any]] | None:
    """Returns the names and values of the JSON object in a text; None if there is none."""
    fenced = FENCE.findall(text)
    body = fenced[0] if len(fenced) == 1 else text
    first, last = body.find("{"), body.rfind("}")
    if first < 0 or last < first:
        return None
    try:
        found = json.loads(body[first : last + 1], object_pairs_hook=_Pairs, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object: a name that appears twice must not go unseen, as in a dict."""


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
