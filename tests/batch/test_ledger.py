"""The books: shards are fixed, commits close, and crashes are pinned on rows."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.batch import ledger, verify
from raymotion.batch.ledger import Attempts, Commit, Manifest
from raymotion.data.samples import read_samples
from raymotion.errors import InputError


def commit(shard: int, digest: str = "d", **changes: object) -> Commit:
    values: dict[str, object] = {
        "shard": shard, "job_digest": digest, "rows": 3, "good": 2, "quarantined": 1, "by_reason": {"image_empty": 1},
        "sha256": "", "bytes": 0, "quarantine_sha256": None, "seconds": 0.0, "stage_seconds": {}, "worker": "w",
        "attempt": 1,
    }  # fmt: skip
    return Commit(**{**values, **changes})  # type: ignore[arg-type]


@given(st.integers(1, 10_000_000), st.booleans())
def test_default_shards_are_neither_tiny_nor_many_rows_long(rows: int, remote: bool) -> None:
    size, shards = ledger.default_shard_rows(rows, remote=remote), 32 if remote else 64
    assert 8 <= size <= 256
    assert size in (8, 256) or rows / (shards + 1) <= size <= rows / shards + 1


@given(rows=st.integers(1, 40), per_shard=st.integers(1, 50))
def test_manifest_holds_every_row_once_in_order(
    rows: int, per_shard: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from raymotion.data.samples import table_from_rows

    folder = str(tmp_path_factory.mktemp("m"))
    samples = table_from_rows({"sample_id": f"s{i}", "group_id": "g", "source": "x"} for i in range(rows))
    sizes = ledger.shard_sizes(samples, per_shard)
    count = len(sizes)
    assert ledger.write_manifest(folder, samples, sizes) is False
    manifest = Manifest(folder)
    assert manifest.shard_sizes() == [min(per_shard, rows - start) for start in range(0, rows, per_shard)]
    ids = [row["sample_id"] for shard in range(count) for row in manifest.rows(shard)]
    assert ids == samples.column("sample_id").to_pylist()


@pytest.mark.parametrize(
    "changes", [{"good": 3}, {"quarantined": 0}, {"by_reason": {}}, {"by_reason": {"a": 1, "b": 1}}]
)
def test_books_that_do_not_close_are_never_written(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="do not close"):
        commit(0, **changes)


def test_a_commit_of_another_job_is_an_error(tmp_path: Path) -> None:
    ledger.write_commit(str(tmp_path), commit(0, "other"))
    with pytest.raises(InputError, match=r"part-00000\.json: .*another job \(other, not d\)"):
        ledger.read_commits(str(tmp_path), "d")
    with pytest.raises(InputError, match=r"part-00000\.json: .*another job \(other, not d\)"):
        verify.survey(str(tmp_path), "d", [3], digests=False)


def test_the_row_under_way_alone_is_blamed_at_the_next_attempt(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "run1")
    first = attempts.begin(7)
    assert (first.count, first.blamed) == (1, [])
    second = attempts.begin(7)
    second.suspect = 4
    attempts.note(7, second)
    third = attempts.begin(7)
    assert (third.count, third.blamed, third.suspect) == (3, [], None), "once may have been the node's fault"
    third.suspect = 4
    attempts.note(7, third)
    assert attempts.begin(7).blamed == [4]
    assert Attempts(str(tmp_path), "run2").begin(7).count == 1, "another run blames nothing"
    attempts.end(7)
    assert attempts.begin(7).count == 1
    ledger.remove_attempts(str(tmp_path))
    assert not (tmp_path / "_attempts").exists()


def test_deaths_while_loading_are_counted(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "run1")
    assert attempts.begin_setup() == 0
    attempts.end_setup()
    own = Path(attempts.folder)
    assert not list(own.glob("setup-*"))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    storage.write_json(own / f"setup-{socket.gethostname()}-{gone.stdout.strip()}.json", {})
    storage.write_json(own / f"setup-elsewhere-{gone.stdout.strip()}.json", {})
    assert attempts.begin_setup() == 1, "one process of this machine began to load, and is no more"


def test_manifest_on_s3(s3: str, write_table: Callable[..., Path]) -> None:
    samples = read_samples(write_table(5))
    ledger.write_manifest(s3, samples, ledger.shard_sizes(samples, 2))
    assert [row["sample_id"] for row in Manifest(s3).rows(2)] == ["x:4"]
