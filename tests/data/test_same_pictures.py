"""Pictures with the same content, and the groups that they join."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data import same_pictures
from raymotion.data.same_pictures import content_digests, joined_groups


def test_digests_tell_contents_apart_wherever_they_are(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = bytes(range(256)) * 10_000  # more than one part
    for name, data in (("a", big), ("b", big), ("c", big[:-1] + b"x"), ("d", b"")):
        (tmp_path / name).write_bytes(data)
    storage.write_bytes(f"{s3}/a", big)
    uris = [*(str(tmp_path / name) for name in "abcd"), f"{s3}/a", str(tmp_path / "gone"), f"{s3}/gone", str(tmp_path)]
    a, b, c, d, remote, *unread = content_digests(uris)
    assert a == b == remote and len({a, c, d}) == 3 and unread == [None] * 3
    reads: list[str] = []
    real = same_pictures._digest
    monkeypatch.setattr(same_pictures, "_digest", lambda uri: (reads.append(uri), real(uri))[1])
    assert content_digests([uris[0]] * 3) == [a] * 3 and len(reads) == 1, "each address is read once"


ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([None, "1", "2", "3", "a"])), max_size=12)


@given(ROWS)
def test_groups_are_joined_as_by_walking_from_row_to_row(rows: list[tuple[str, str | None]]) -> None:
    found = joined_groups([group for group, _ in rows], [content for _, content in rows])
    for start, (group, _) in enumerate(rows):
        reached, edge = {start}, [start]
        while edge:
            own = rows[edge.pop()]
            for other, (name, content) in enumerate(rows):
                if other not in reached and (name == own[0] or (content is not None and content == own[1])):
                    reached.add(other)
                    edge.append(other)
        assert found[start] == min(rows[k][0] for k in reached) <= group
        assert {k for k, name in enumerate(found) if name == found[start]} == reached
