"""Stores that fail, lie or are slow, and names that look like something else: on a real S3 server behind a proxy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data.images.decode import fetch
from raymotion.data.images.marks import stamps
from raymotion.data.path_kinds import _folders
from raymotion.data.readers.folder import FolderReader
from raymotion.errors import AccessDenied, AddressRefused, InputError, RunFailed, StoreUnavailable
from raymotion.stores import access, addresses, s3, web
from raymotion.stores.fsspec_stores import Generic


def first(times: int, wrong: tuple[Any, ...], method: str = "") -> Callable[[Any, int], tuple[Any, ...] | None]:
    """The first so many requests of each kind go wrong."""
    return lambda request, before: wrong if before < times and request.method.startswith(method) else None


FAULTS = [("status", 500), ("status", 503), ("reset",), ("cut", 3), ("cut", 0), ("short", 0)]


class TestAStoreThatFails:
    @pytest.mark.parametrize("wrong", FAULTS, ids=lambda w: "-".join(map(str, w)))
    def test_reads_are_repeated(self, s3, store_proxy, wrong):
        storage.write_bytes(f"{s3}/a", b"whole content")
        store_proxy.fault = first(3, wrong, "GET")
        assert storage.read_bytes(f"{s3}/a") == b"whole content"
        assert storage.read_head(f"{s3}/a", 5) == b"whole"

    @pytest.mark.parametrize("wrong", FAULTS[:3], ids=lambda w: "-".join(map(str, w)))
    def test_everything_else_is_repeated_too(self, s3, store_proxy, wrong):
        store_proxy.fault = first(2, wrong)
        table = pa.table({"x": list(range(500_000))})
        storage.write_bytes(f"{s3}/d/a", b"1")
        storage.write_table(f"{s3}/d/t.parquet", table)
        assert storage.exists(f"{s3}/d/a") and storage.is_dir(f"{s3}/d")
        assert storage.list_names(f"{s3}/d") == ["a", "t.parquet"]
        assert storage.list_tree(s3) == ["d/a", "d/t.parquet"]
        assert storage.read_table(f"{s3}/d/t.parquet", ["x"]).equals(table)
        assert storage.size_of(f"{s3}/d/a") == 1
        storage.remove(f"{s3}/d/a")
        storage.remove_tree(f"{s3}/d")
        assert storage.list_tree(s3) == []

    def test_what_ray_is_given_is_patient_too(self, s3, store_proxy):
        fs, inner = storage.filesystem(f"{s3}/a")
        store_proxy.fault = first(2, ("status", 500))
        with fs.open(inner, "wb") as file:
            file.write(b"from a library")
        with fs.open(inner, "rb") as file:
            assert file.read() == b"from a library"
        store_proxy.fault = first(10**6, ("cut", 2), "GET")
        with access.using(patience=0.05), fs.open(inner, "rb") as file, pytest.raises(StoreUnavailable):
            file.read()

    def test_giving_up_names_everything(self, s3, store_proxy):
        store_proxy.fault = first(10**6, ("status", 500))
        with access.using(patience=0.3), pytest.raises(RunFailed) as caught:
            storage.read_bytes(f"{s3}/deep/a b.jpg")
        text = str(caught.value)
        assert f"{s3}/deep/a b.jpg" in text and store_proxy.endpoint in text and "injected" in text
        assert "times in" in text and "to read it" in text and "the same command goes on" in text and "\n" not in text

    def test_patience_is_a_time(self, s3, store_proxy):
        store_proxy.fault = first(10**6, ("reset",))
        began = time.monotonic()
        with access.using(patience=1.0), pytest.raises(StoreUnavailable):
            storage.write_bytes(f"{s3}/a", b"")
        assert 1.0 <= time.monotonic() - began < 8
        assert len(store_proxy.requests) >= 2

    @pytest.mark.parametrize("status, error", [(403, AccessDenied), (400, InputError), (501, InputError)])
    def test_a_refusal_is_not_repeated(self, s3, store_proxy, status, error):
        store_proxy.fault = first(10**6, ("status", status))
        with pytest.raises(error):
            storage.read_bytes(f"{s3}/a")
        assert len(store_proxy.requests) == 1

    def test_what_is_missing_is_asked_for_once(self, s3, store_proxy):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(f"{s3}/none")
        assert len(store_proxy.requests) == 1

    def test_an_object_that_is_empty_is_empty(self, s3, store_proxy):
        storage.write_bytes(f"{s3}/a", b"")
        assert storage.read_bytes(f"{s3}/a") == b"" and storage.read_head(f"{s3}/a", 5) == b""
        with storage.open_input(f"{s3}/a") as file:
            assert file.read() == b""

    def test_a_file_is_one_request(self, s3, store_proxy):
        data = storage.parquet_bytes(pa.table({"x": [1.5] * 10, "y": ["a"] * 10}))
        storage.write_bytes(f"{s3}/a", data)
        store_proxy.requests.clear()
        assert storage.read_bytes(f"{s3}/a") == data
        assert len(store_proxy.requests) == 1
        storage.read_table(f"{s3}/a")
        storage.read_table(f"{s3}/a", ["y"])
        assert len(store_proxy.requests) == 3

    @pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
    def test_a_patience_that_is_none(self, monkeypatch, text):
        monkeypatch.setenv(access.PATIENCE, text)
        with pytest.raises(InputError, match="RAYMOTION_STORE_PATIENCE"):
            access.current()

    def test_the_command_sets_it_for_itself(self, monkeypatch, runner, tmp_path):
        seen = []
        monkeypatch.setattr(
            "raymotion.pipeline.prediction.explain", lambda *_, **__: seen.append(access.current()) or 1 / 0
        )
        monkeypatch.delenv(access.PATIENCE, raising=False)
        runner("predict", tmp_path, "--caption", "x", "--store-patience", "7", "--allow-http")
        assert seen == [access.Access(7.0, True)]
        assert access.current() == access.Access(120.0, False)

    def test_the_command_line_beats_the_settings_file(self, monkeypatch, runner, tmp_path):
        seen = []
        monkeypatch.setattr(
            "raymotion.batch.regions.extract_regions", lambda settings, **_: seen.append(settings) or 1 / 0
        )
        (tmp_path / "job.yaml").write_text("store_patience: 300\nallow_http: false\n")
        command = ("features", "regions", "s.parquet", "--out", tmp_path, "--config", tmp_path / "job.yaml")
        runner(*command, "--store-patience", "7", "--allow-http")
        runner(*command)
        assert [(own.store_patience, own.allow_http) for own in seen] == [(7.0, True), (300.0, False)]

    def test_the_settings_hold_for_the_lock_of_the_folder_too(self, monkeypatch, tmp_path):
        from raymotion.batch.faces import FaceSettings, detect_faces
        from raymotion.batch.job import run_job
        from raymotion.batch.spec import JobSettings
        from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint

        seen, before = [], access.current()
        monkeypatch.setattr(
            "raymotion.folders.lock.one_writer", lambda *_, **__: seen.append(access.current()) or 1 / 0
        )
        own = {"samples": "s.parquet", "out": str(tmp_path), "store_patience": 7, "allow_http": True}
        for run in (
            lambda: run_job(SimpleNamespace(settings=JobSettings(**own))),
            lambda: detect_faces(FaceSettings(**own)),
            lambda: evaluate_checkpoint(EvaluateSettings(**own, model="c")),
        ):
            with pytest.raises(ZeroDivisionError):
                run()
        assert seen == [access.Access(7.0, True)] * 3 and access.current() == before

    def test_workers_of_a_cluster_that_ran_before_take_it_from_the_driver(self, monkeypatch):
        import ray.train

        from raymotion.models.student.kind import StudentKind
        from raymotion.study.search import TrialTrainable
        from raymotion.train import fit
        from raymotion.train import runs as finetune

        seen = []

        def note(*_, **__):
            seen.append(access.current())
            raise ZeroDivisionError

        monkeypatch.setattr(ray.train, "get_context", note)
        monkeypatch.setattr(finetune, "one_writer", note)
        monkeypatch.setattr("raymotion.batch.memory.keep_freed_memory", note)
        trial = object.__new__(TrialTrainable)
        trial.spec = {"access": asdict(access.Access(3.0, True))}
        for patience, work in enumerate(
            (
                lambda: fit._worker({"access": asdict(access.Access(1.0, True))}),
                lambda: finetune.train_one(StudentKind, {}, "out", access.Access(2.0, True)),
                lambda: trial._begin(),
            ),
            1,
        ):
            with access.using(), pytest.raises(ZeroDivisionError):
                work()
            assert seen[-1] == access.Access(float(patience), True)


ODD = [
    "a//b.jpg", "/lead.jpg", "//two.jpg", "a///b.jpg", "a::b.jpg", "zip::a.jpg", "a b.jpg", " lead.jpg", "trail.jpg ",
    "a%20b.jpg", "a%2Fb.jpg", "a+b.jpg", "a#b.jpg", "a?b.jpg", "a?b=c&d.jpg", "a*b.jpg", "a[0].jpg", "{a}.jpg",
    "~/a.jpg", "~a.jpg", "é.jpg", "e\u0301.jpg", "日本.jpg", "😀.jpg", "a'b.jpg", 'a"b.jpg', "a;b.jpg", "a&b.jpg",
    "a=b.jpg", "a@b.jpg", "a:b.jpg", "a,b.jpg", "a|b.jpg", "a\\b.jpg", "http:/a.jpg", "http://a.jpg", "s3://a.jpg",
    "x/file:///a.jpg", "a\tb.jpg", "a!b.jpg", "a$b.jpg", "$HOME.jpg", "-a.jpg", "a.jpg?versionId", "a.JPG", "a/b.jpg",
]  # fmt: skip


class TestNamesInAStore:
    def test_a_key_is_taken_as_it_is_spelled(self, s3):
        bucket, client = s3.removeprefix("s3://"), boto3.client("s3")
        for key in ODD:
            client.put_object(Bucket=bucket, Key=f"x/{key}", Body=key.encode())
        assert sorted(storage.list_tree(f"{s3}/x")) == sorted(ODD)
        for key in ODD:
            address = storage.child(f"{s3}/x", key)
            assert storage.read_bytes(address) == key.encode() and storage.exists(address), key
            with storage.open_input(address) as file:
                assert file.read() == key.encode(), key
            assert key.rsplit("/", 1)[-1] in storage.list_names(storage.parent(address)), key
            storage.write_bytes(address, b"ours")
            assert client.get_object(Bucket=bucket, Key=f"x/{key}")["Body"].read() == b"ours", key
            storage.remove(address)
        assert "Contents" not in client.list_objects_v2(Bucket=bucket)

    @hypothesis_settings(max_examples=300)
    @given(st.text("ab/:?#%~ .*\\", min_size=1, max_size=12))
    def test_folder_and_name_give_the_address_back(self, key):
        address = f"s3://bucket/{key}"
        folder = addresses.parent(address)
        place, own = s3.Place.of(folder), s3.Place.of(address)
        assert own.key == key and own.bucket == place.bucket == "bucket"
        assert own.key.startswith(place.prefix) and "/" not in own.key[len(place.prefix) :]
        assert addresses.child(folder, own.key[len(place.prefix) :]) == address

    def test_a_folder_between_two_slashes(self, s3):
        storage.write_bytes(f"{s3}/a//x.jpg", b"1")
        storage.write_bytes(f"{s3}/a/y.jpg", b"2")
        assert storage.list_names(f"{s3}/a") == ["y.jpg"] and storage.list_names(f"{s3}/a//") == ["x.jpg"]
        assert storage.parent(f"{s3}/a//x.jpg") == f"{s3}/a//"
        storage.require_folder(f"{s3}/a//")
        assert storage.list_sizes(f"{s3}/a") == {"y.jpg": 1} and storage.list_sizes(f"{s3}/a//") == {"x.jpg": 1}
        assert storage.list_entries(f"{s3}/a//") == ["x.jpg"] and storage.list_entries(f"{s3}/a") == ["/", "y.jpg"]
        assert _folders(f"{s3}/a") == ["/"] and _folders(f"{s3}/a//") == []
        storage.write_bytes(f"{s3}/a//y.jpg", b"333")
        between, plain = stamps([f"{s3}/a//y.jpg", f"{s3}/a/y.jpg"])
        assert (between[1], plain[1]) == (3, 1) and between[2] != plain[2]

    def test_a_file_and_a_folder_of_one_name(self, s3):
        for key in ("a/b", "a/b/c", "a/d/e"):
            storage.write_bytes(f"{s3}/{key}", key.encode())
        assert storage.list_names(f"{s3}/a") == ["b"] and storage.list_sizes(f"{s3}/a") == {"b": 3}
        assert storage.list_entries(f"{s3}/a") == ["b", "d"] and _folders(f"{s3}/a") == ["b", "d"]

    def test_another_store_lists_the_same_way(self):
        from fsspec.implementations.memory import MemoryFileSystem

        fs = MemoryFileSystem()
        try:
            for path in ("/a/b", "/a/c/d"):
                fs.pipe_file(path, b"123")
            store = Generic(fs, "/a")
            assert set(store.entries("gs://a")) == {"b", "c/"} and store.names("gs://a") == ["b"]
            assert store.entries("gs://a")["b"]["size"] == 3
            assert Generic(fs, "/a/b").entries("gs://a/b") == {} == Generic(fs, "/none").entries("gs://none")
        finally:
            fs.rm("/a", recursive=True)

    def test_a_version_is_that_version(self, s3):
        bucket = s3.removeprefix("s3://")
        client = boto3.client("s3")
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        versions = [
            client.put_object(Bucket=bucket, Key="a.json", Body=body)["VersionId"] for body in (b'"old"', b'"new"')
        ]
        old = f"{s3}/a.json?versionId={versions[0]}"
        assert storage.read_json(f"{s3}/a.json") == "new" and storage.read_json(old) == "old"
        assert storage.read_from(old, 1) == b'old"' and storage.read_from(f"{s3}/a.json", 1) == b'new"'
        with storage.open_input(old) as file:
            assert file.read() == b'"old"'
        assert storage.exists(old) and storage.suffix(old) == ".json" and storage.parent(old) == s3
        for missing in (f"{s3}/a.json?versionId=none", f"{s3}/b.json?versionId={versions[0]}"):
            with pytest.raises(InputError, match="no such file"):
                storage.require(missing)
        for act in (lambda: storage.write_bytes(old, b""), lambda: storage.remove(old)):
            with pytest.raises(AccessDenied, match="can be read only"):
                act()

    def test_a_folder_of_pictures_with_such_names(self, s3):
        for key in ODD:
            storage.write_bytes(f"{s3}/photos/{key}", b"x")
        storage.write_text(f"{s3}/captions.csv", "file,caption\na//b.jpg,two slashes\na/b.jpg,one slash\n")
        table, report = FolderReader(folder=f"{s3}/photos", captions=f"{s3}/captions.csv").read()
        hidden = [key for key in ODD if any(part.startswith(".") for part in key.split("/"))]
        pictures = [key for key in ODD if key.lower().endswith(".jpg") and key not in hidden]
        # Blanks at the end of a name are not ours to judge: the file has no extension that is known.
        left_out = report.content.others.total() + report.content.hidden
        assert report.rows + left_out == len(ODD) and set(table.column("image_uri").to_pylist()) == {
            f"{s3}/photos/{key}" for key in pictures
        }
        captions = dict(zip(table.column("image_uri").to_pylist(), table.column("captions").to_pylist(), strict=True))
        assert captions[f"{s3}/photos/a//b.jpg"] == ["two slashes"]
        assert captions[f"{s3}/photos/a/b.jpg"] == ["one slash"]
        for uri in table.column("image_uri").to_pylist():
            assert fetch(uri) == b"x", uri

    def test_a_listing_of_many_pages(self, s3, monkeypatch):
        for number in range(7):
            storage.write_bytes(f"{s3}/{number}", b"")
        from raymotion.stores import s3 as store

        call = store._call
        monkeypatch.setattr(
            store, "_call", lambda method, **k: call(method, **({**k, "MaxKeys": 3} if "Prefix" in k else k))
        )
        assert storage.list_names(s3) == [str(number) for number in range(7)]

    @pytest.mark.parametrize("address", ["s3://Bad_Bucket!/a", "s3://b/" + "k" * 2000, "s3:///a"])
    def test_what_can_be_no_object_is_missing(self, s3, address):
        with pytest.raises((FileNotFoundError, IsADirectoryError, InputError)):
            storage.read_bytes(address)


class TestNamesOnADisk:
    @pytest.mark.parametrize(
        "name",
        ["a::b.jpg", "zip::a", "a#b", "a?b", "a*b", "[a]", "a%20b", " a ", "~a", "a:b", "é", "s3:a", "a?versionId=1"],
    )
    def test_a_name_is_taken_as_it_is_spelled(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(b"1")
        assert storage.absolute(path) == str(path) and storage.read_bytes(path) == b"1"
        with storage.open_input(path) as file:
            assert file.read() == b"1"
        assert storage.exists(path) and not storage.is_dir(path) and storage.list_names(tmp_path) == [name]

    def test_file_addresses_are_percent_encoded(self, tmp_path):
        for name in ("a b.txt", "c%20d.txt", "é#?.txt"):
            (tmp_path / name).write_text(name)
            assert storage.read_text((tmp_path / name).as_uri()) == name
        assert storage.read_text(f"file://{tmp_path}/c%20d.txt") == "c%20d.txt"  # not encoded, and yet clear
        assert storage.read_text(f"FILE://localhost{tmp_path}/a%20b.txt") == "a b.txt"
        with pytest.raises(InputError, match="the host elsewhere"):
            storage.read_bytes("file://elsewhere/a")


REFUSED = [
    "ftp://host/a.jpg", "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "data:image/png;base64,AAAA",
    "memory://a", "memory:a", "github://o:r@/a.jpg", "zip://a.jpg", "zip://a.jpg::s3://b/x.zip",
    "local:///a", "local:/a",
    "simplecache::s3://b/a.jpg", "filecache::https://x/a.jpg", "hdfs://a/b", "sftp://h/a", "smb://h/a", "hf://datasets/a",
    "git://a", "reference://a", "gopher://h/a",
]  # fmt: skip


class TestKindsOfAddresses:
    @pytest.mark.parametrize("uri", REFUSED)
    def test_other_schemes_are_refused_in_a_table(self, uri):
        with pytest.raises(AddressRefused) as caught, access.using(allow_http=True):
            storage.require_allowed_in_table(uri)
        assert "\n" not in str(caught.value) and uri.split(":")[0].lower() in str(caught.value)

    @pytest.mark.parametrize("uri", ["http://h/a.jpg", "https://h/a.jpg", "HTTPS://h/a.jpg", "hTTp://h/a.jpg"])
    def test_http_has_to_be_asked_for(self, uri):
        with pytest.raises(AddressRefused, match="--allow-http"):
            storage.require_allowed_in_table(uri)
        with pytest.raises(AddressRefused, match="--allow-http"):
            storage.read_bytes(uri)
        with access.using(allow_http=True):
            storage.require_allowed_in_table(uri)

    @pytest.mark.parametrize(
        "uri", ["/a/b.jpg", "a.jpg", "a:b.jpg", "s3://b/a.jpg", "S3://b/a", "s3a://b/a::b", "/x/http://a"]
    )
    def test_paths_and_buckets_are_read(self, uri):
        storage.require_allowed_in_table(uri)

    def test_a_local_file_that_looks_like_a_scheme(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("memory:a.jpg").write_bytes(b"1")
        storage.require_allowed_in_table("memory:a.jpg")

    def test_capital_letters_are_the_same_scheme(self, s3):
        storage.write_bytes(f"{s3}/a", b"1")
        assert storage.read_bytes(s3.replace("s3:", "S3:") + "/a") == b"1"
        assert storage.read_bytes(s3.replace("s3:", "s3a:") + "/a") == b"1"


@pytest.fixture
def website() -> Iterator[tuple[str, list[str]]]:
    """Address of a web server that answers in many ways, by path; and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            what, _, rest = self.path[1:].partition("/")
            if what == "to":
                return self.answer(302, b"", Location=rest)
            if what == "loop":
                return self.answer(302, b"", Location=self.path)
            if what == "status":
                return self.answer(int(rest), b"")
            if what == "flaky":
                return self.answer(503 if asked.count(self.path) < 3 else 200, b"at last")
            if what == "endless":
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                while True:
                    self.wfile.write(bytes(1 << 16))
            if what == "drip":
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                while True:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            if what == "silent":
                time.sleep(20)
            if what == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"short")
                self.close_connection = True
                return
            self.answer(200, b"content of " + rest.encode())

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


class TestTheWeb:
    def test_a_file(self, website):
        base, asked = website
        assert web.read(f"{base}/ok/a.jpg?x=1") == b"content of a.jpg?x=1"
        assert web.read(f"{base}/to/{base}/ok/b") == b"content of b"
        assert len(asked) == 3

    def test_it_is_asked_again(self, website, monkeypatch):
        monkeypatch.setattr(web, "FIRST_PAUSE", 0.01)
        assert web.read(f"{website[0]}/flaky/a") == b"at last"

    @pytest.mark.parametrize("status", [404, 410])
    def test_a_missing_file(self, website, status):
        with pytest.raises(FileNotFoundError):
            web.read(f"{website[0]}/status/{status}")

    @pytest.mark.parametrize("status", [400, 401, 403, 451])
    def test_a_refusal_is_not_repeated(self, website, status):
        with pytest.raises(web.WebError, match=str(status)):
            web.read(f"{website[0]}/status/{status}")
        assert len(website[1]) == 1

    def test_an_endless_answer(self, website):
        with pytest.raises(web.TooManyBytes, match="more than 1,000,000 bytes"):
            web.read(f"{website[0]}/endless", most_bytes=1_000_000)

    @pytest.mark.parametrize("kind", ["drip", "silent", "cut", "status/500"])
    def test_an_answer_that_takes_for_ever(self, website, kind):
        began = time.monotonic()
        with pytest.raises(web.WebError, match=r"not read within 0\.5 s"):
            web.read(f"{website[0]}/{kind}", seconds=0.5)
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "s3://bucket/a", "data:,x"])
    def test_a_redirect_to_another_scheme(self, website, target):
        with pytest.raises(web.WebError, match=r"redirects to .*not http|is not a valid address"):
            web.read(f"{website[0]}/to/{target}")

    def test_redirects_that_go_round(self, website):
        with pytest.raises(web.WebError, match="redirects more than 5 times"):
            web.read(f"{website[0]}/loop")
        assert len(website[1]) == 6

    def test_a_redirect_into_the_machines_own_network(self, website, monkeypatch):
        import ipaddress

        with pytest.raises(web.WebError, match="link-local"):
            web.read(f"{website[0]}/to/http://169.254.169.254/latest/meta-data/")
        with pytest.raises(web.WebError, match="link-local"):
            web.read("http://169.254.169.254/latest/meta-data/")
        port = website[0].rsplit(":", 1)[1]

        async def resolved(host: str) -> list[Any]:  # as if the first host were a public one
            return [ipaddress.ip_address("93.184.215.14" if host == "localhost" else host)]

        monkeypatch.setattr(web, "_addresses", resolved)
        with pytest.raises(web.WebError, match="on a private network"):
            web.read(f"http://localhost:{port}/to/http://127.0.0.1:{port}/ok/a")
        assert not any("/ok/" in path and not path.startswith("/to") for path in website[1])

    def test_nothing_is_written_or_listed_there(self, website):
        with access.using(allow_http=True):
            for act in (storage.list_names, lambda at: storage.write_bytes(at, b""), storage.remove):
                with pytest.raises(AccessDenied):
                    act(f"{website[0]}/ok/a")
            assert storage.read_text(f"{website[0]}/ok/a") == "content of a"
