"""Files and object stores: the same behaviour on a disk and on a real S3 server, and what a refusal looks like."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.errors import AccessDenied, InputError, NotFinite


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3") + "/out"


class TestPaths:
    @pytest.mark.parametrize(
        "path, remote",
        [("s3://b/k", True), ("gs://b", True), ("a/b", False), ("/a", False), ("file:///a", False), (Path("a"), False)],
    )
    def test_is_remote(self, path, remote):
        assert storage.is_remote(path) is remote

    def test_absolute(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/me")
        assert storage.absolute("a/../b") == str(tmp_path / "b")
        assert storage.absolute("file:///a/b") == "/a/b"
        assert storage.absolute("~/x") == "/home/me/x"
        assert storage.absolute("s3://b/k/") == "s3://b/k"

    @pytest.mark.parametrize(
        "parts, joined",
        [
            (("s3://b/k", "x", "y.txt"), "s3://b/k/x/y.txt"),
            (("s3://b/k/", "x"), "s3://b/k/x"),
            (("a", "b"), "a/b"),
            (("a", "/b"), "/b"),
            (("a", "s3://b/k"), "s3://b/k"),
        ],
    )
    def test_join(self, parts, joined):
        assert storage.join(*parts) == joined

    def test_parent(self):
        assert storage.parent("s3://b/k/x.txt") == "s3://b/k"
        assert storage.parent("/a/b/c") == "/a/b"

    def test_an_unknown_kind_of_address(self):
        with pytest.raises(InputError, match=r"nope://x.*Use a local path or an s3:// address"):
            storage.read_bytes("nope://x/y")


class TestRoundTrips:
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
    def test_bytes(self, folder, data):
        path = storage.join(folder, "deep", "a b.bin")
        storage.write_bytes(path, data)
        assert storage.read_bytes(path) == data
        with storage.open_input(path) as file:
            file.seek(max(0, len(data) - 3))
            assert file.read() == data[-3:]
        assert storage.sha256_file(path) == hashlib.sha256(data).hexdigest()

    def test_writing_again_replaces(self, folder):
        path = storage.join(folder, "a")
        storage.write_bytes(path, b"long long")
        storage.write_bytes(path, b"short", durable=False)
        assert storage.read_bytes(path) == b"short"
        assert storage.list_names(folder) == ["a"]

    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=10,
        )
    )
    def test_json(self, tmp_path_factory, value):
        path = tmp_path_factory.getbasetemp() / "value.json"
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair is no text
            return
        storage.write_json(path, value)
        assert storage.read_json(path) == value

    @given(text=st.text(st.characters(codec="utf-8")))
    def test_text(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "text.txt"
        storage.write_text(path, text)
        assert storage.read_text(path) == text.removeprefix("\ufeff")

    def test_json_refuses_what_json_has_not(self, tmp_path):
        told = rf"{tmp_path}/a\.json: x\.y\[1\] is (nan|inf|-inf), and only finite numbers are written"
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(NotFinite, match=told):
                storage.write_json(tmp_path / "a.json", {"x": {"y": [1.0, value]}})
        assert list(tmp_path.iterdir()) == []
        for text in ('{"x": NaN}', "[-Infinity]", '{"x": 1e999}', "[" * 100_000, "[" + "9" * 5000 + "]"):
            (tmp_path / "a.json").write_text(text)
            with pytest.raises(InputError, match=r"a\.json: is not JSON"):
                storage.read_json(tmp_path / "a.json")

    def test_tables_refuse_what_is_no_number(self, tmp_path):
        good = pa.array([[0.5, None], None, []], pa.list_(pa.float32()))
        flat = pa.array(np.array([1, 2, 3, np.inf], np.float16))
        columns = {
            "a": (pa.array([1.0, None, math.nan]), 2),
            "b": (pa.array([[0.5], None, [1.0, -math.inf]], pa.list_(pa.float32())), 2),
            "c": (pa.FixedSizeListArray.from_arrays(flat, 2), 1),
        }
        for name, (column, row) in columns.items():
            with pytest.raises(NotFinite, match=rf"t\.parquet, row {row}: {name} .*NaN"):
                storage.write_table(tmp_path / "t.parquet", pa.table({name: column}))
        storage.write_table(tmp_path / "t.parquet", pa.table({"good": good, "n": pa.array([1, None, 3])}))
        assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]

    def test_tables(self, folder):
        table = pa.table({"id": ["a", "b"], "x": [1, None]}).replace_schema_metadata({b"k": b"v"})
        path = storage.join(folder, "t.parquet")
        digest, size = storage.write_table(path, table)
        assert storage.read_table(path).equals(table, check_metadata=True)
        assert storage.read_table(path, columns=["x"]).column_names == ["x"]
        data = storage.read_bytes(path)
        assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))


class TestLooking:
    def test_exists_list_and_remove(self, folder):
        a, b = storage.join(folder, "a"), storage.join(folder, "sub", "b")
        assert storage.list_names(folder) == []
        assert not storage.exists(a) and not storage.is_dir(folder)
        storage.write_bytes(a, b"")
        storage.write_bytes(b, b"1")
        assert storage.exists(a) and storage.exists(b) and storage.is_dir(folder) and not storage.is_dir(a)
        assert storage.list_names(folder) == ["a"]  # files, not folders
        storage.remove(a)
        storage.remove(a)  # a second time is no error
        assert not storage.exists(a)
        assert storage.list_names(folder) == []

    def test_a_listing_is_never_a_remembered_one(self, s3):
        import boto3

        assert storage.list_names(s3) == []
        boto3.client("s3").put_object(Bucket=s3.removeprefix("s3://"), Key="from-elsewhere", Body=b"")
        assert storage.list_names(s3) == ["from-elsewhere"]
        assert storage.exists(f"{s3}/from-elsewhere")

    def test_names_are_sorted(self, folder):
        for name in ("b", "a10", "a2"):
            storage.write_bytes(storage.join(folder, name), b"")
        assert storage.list_names(folder) == ["a10", "a2", "b"]

    def test_require_folder(self, folder):
        with pytest.raises(InputError, match="no such folder"):
            storage.require_folder(folder)
        storage.write_bytes(storage.join(folder, "a"), b"")
        storage.require_folder(folder)
        with pytest.raises(InputError, match="no such folder"):
            storage.require_folder(storage.join(folder, "b", "c"))

    def test_probe_leaves_nothing_behind(self, folder):
        storage.probe_writable(folder)
        assert storage.list_names(folder) == []


class TestMistakes:
    def test_missing_files(self, folder):
        path = storage.join(folder, "none")
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(path)
        for read in (storage.require, storage.read_text, storage.read_json, storage.read_table, storage.sha256_file):
            with pytest.raises(InputError, match="none: no such file"):
                read(path)

    def test_a_folder_is_no_file(self, tmp_path):
        for read in (storage.require, storage.read_table):
            with pytest.raises(InputError, match="is a folder, not a file"):
                read(tmp_path)

    def test_text_that_is_not_utf8(self, folder):
        path = storage.join(folder, "a.txt")
        storage.write_bytes(path, b"caf\xe9")
        with pytest.raises(InputError, match=r"a\.txt: .*UTF-8.*byte 3"):
            storage.read_text(path)

    def test_a_byte_order_mark_is_no_text(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfname\n")
        assert storage.read_text(tmp_path / "a.csv") == "name\n"

    def test_damaged_json(self, tmp_path):
        (tmp_path / "a.json").write_text('{\n"a": 1,\n}')
        with pytest.raises(InputError, match=r"a\.json: .*JSON \(line [23]: "):
            storage.read_json(tmp_path / "a.json")

    @pytest.mark.parametrize("data", [b"", b"PAR1", b"id,caption\n1,x\n"])
    def test_what_is_no_parquet(self, tmp_path, data):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.parquet: .*Parquet.*Prepare it again"):
            storage.read_table(tmp_path / "a.parquet")

    @given(st.integers(0, 10**6), st.binary(min_size=1, max_size=20))
    def test_damaged_parquet_is_read_or_an_input_error(self, tmp_path_factory, at, damage):
        path = tmp_path_factory.getbasetemp() / "damaged.parquet"
        data = bytearray(storage.parquet_bytes(pa.table({"x": list(range(200)), "s": ["ab"] * 200})))
        at %= len(data)
        data[at : at + len(damage)] = damage
        path.write_bytes(bytes(data))
        try:
            storage.read_table(path)
        except InputError as error:
            assert "damaged.parquet" in str(error)

    @pytest.mark.parametrize("path", ["file/a", "file/deep/a"])
    def test_a_file_in_the_way(self, tmp_path, path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InputError, match=r"cannot be written: .*a file, not a folder"):
            storage.write_bytes(tmp_path / path, b"")
        with pytest.raises(InputError, match="is a file, not a folder"):
            storage.make_dir(tmp_path / path)

    def test_a_folder_in_the_way(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match="is a folder"):
            storage.write_bytes(tmp_path / "a", b"")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_a_bucket_that_is_not_there(self, s3):
        with pytest.raises(InputError, match="there is no such bucket"):
            storage.write_bytes("s3://no-such-bucket-anywhere/a", b"")
        assert not storage.exists("s3://no-such-bucket-anywhere/a")

    def test_a_store_that_does_not_answer(self, dead_store):
        with pytest.raises(ConnectionError, match="s3://bucket/a"):
            storage.read_bytes("s3://bucket/a")


class TestAtomicity:
    def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(self, tmp_path):
        # Runs in a process whose files may not grow beyond 100 kB: the kernel fails the write half way.
        storage.write_bytes(tmp_path / "a", b"old")
        code = (
            "import resource, signal, sys; from raymotion import storage\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try: storage.write_bytes(sys.argv[1], bytes(1_000_000))\n"
            "except OSError as error: print(error.strerror)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
        assert done.stdout == "File too large\n", done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    def test_a_killed_writer_leaves_no_file_under_the_name_and_none_in_listings(self, tmp_path):
        code = (
            "import os, sys; from raymotion import storage\n"
            "os.replace = lambda *a: os.kill(os.getpid(), 9)\n"  # dies at the last moment before the file is in place
            "storage.write_bytes(sys.argv[1], b'new')"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")])
        assert done.returncode == -9
        assert not storage.exists(tmp_path / "a")
        assert all(name.startswith(".") for name in storage.list_names(tmp_path))

    def test_readers_see_one_whole_version_or_the_other(self, tmp_path):
        path = tmp_path / "a"
        storage.write_bytes(path, bytes(300_000))
        code = (
            "import sys; from raymotion import storage\n"
            "for i in range(60): storage.write_bytes(sys.argv[1], bytes([i % 7]) * 300_000, durable=False)"
        )
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        reads = 0
        while writer.poll() is None or reads == 0:
            data = path.read_bytes()
            assert len(data) == 300_000 and len(set(data)) == 1
            reads += 1
        assert writer.returncode == 0


class TestDeterminism:
    def test_the_same_table_gives_the_same_bytes_in_another_process(self, tmp_path):
        code = (
            "import sys, pyarrow as pa; from raymotion import storage\n"
            "t = pa.table({'id': [f'coco:{i:012d}' for i in range(5000)], 'p': [i / 7 for i in range(5000)],\n"
            "              'l': [['happy', 'sad'][: i % 3] for i in range(5000)]})\n"
            "print(storage.write_table(sys.argv[1], t)[0])"
        )
        digests = {
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / f"{seed}.parquet")],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(digests) == 1
        assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()

    @given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.none() | st.floats(width=32)), max_size=20))
    def test_reading_and_writing_again_gives_the_same_bytes(self, rows):
        table = pa.table(
            {"s": pa.array([s for s, _ in rows], pa.string()), "x": pa.array([x for _, x in rows], pa.float32())}
        )
        import io

        import pyarrow.parquet as pq

        data = storage.parquet_bytes(table)
        assert storage.parquet_bytes(pq.read_table(io.BytesIO(data))) == data


CLOSED = """
import os, sys
from raymotion import storage
from raymotion.errors import AccessDenied, NotFinite
import fsspec.implementations.local, pyarrow.parquet  # while the library may still be read
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = sys.argv[1]
file = folder + "/a"
actions = {
    "read": lambda: storage.read_bytes(file),
    "require": lambda: storage.require(file),
    "table": lambda: storage.read_table(file),
    "exists": lambda: storage.exists(file),
    "list": lambda: storage.list_names(folder),
    "write": lambda: storage.write_bytes(file, b""),
    "table out": lambda: storage.write_table(file, pyarrow.table({"x": [1]})),
    "make": lambda: storage.make_dir(folder + "/b"),
    "remove": lambda: storage.remove(file),
    "probe": lambda: storage.probe_writable(folder),
    "folder": lambda: storage.require_folder(folder),
    "below": lambda: storage.require_folder(folder + "/b"),
}
for name, action in actions.items():
    try:
        action()
        print(name, "was not refused")
    except AccessDenied as error:
        print(name, error)
"""


class TestRefusals:
    def test_a_closed_folder(self):
        """Root may read everything, so a root's test run drops its rights in the process that tries."""
        # pytest's own temporary folders are closed to others: the refusal has to come from the folder under test.
        with tempfile.TemporaryDirectory() as outer:
            os.chmod(outer, 0o755)
            closed = Path(outer) / "closed"
            closed.mkdir()
            (closed / "a").write_bytes(b"x")
            closed.chmod(0)
            try:
                done = subprocess.run([sys.executable, "-c", CLOSED, str(closed)], capture_output=True, text=True)
            finally:
                closed.chmod(0o755)
            assert (closed / "a").read_bytes() == b"x"
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 12
        for line in lines:
            assert str(closed) in line and "may not" in line and "Check the permissions" in line

    @pytest.mark.parametrize(
        "act",
        [
            lambda at: storage.read_bytes(f"{at}/a"),
            lambda at: storage.read_table(f"{at}/a"),
            lambda at: storage.exists(f"{at}/a"),
            lambda at: storage.list_names(at),
            lambda at: storage.write_bytes(f"{at}/a", b""),
            lambda at: storage.remove(f"{at}/a"),
            lambda at: storage.probe_writable(at),
            lambda at: storage.require_folder(at),
        ],
        ids=["read", "table", "exists", "list", "write", "remove", "probe", "folder"],
    )
    def test_a_bucket_that_answers_403(self, refusing_store, act):
        with pytest.raises(AccessDenied, match=r"s3://bucket.* may not .*credentials"):
            act("s3://bucket/x")

    def test_no_credentials_at_all(self, s3, monkeypatch):
        import s3fs

        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", "/nonexistent")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
            storage.write_bytes(f"{s3}/a", b"")
        s3fs.S3FileSystem.clear_instance_cache()
