"""Checkpoints that travel: folders and stores for real, the hub over HTTP to a small server that speaks as it does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from raymotion import storage
from raymotion.errors import InputError, RunFailed
from raymotion.models import hub
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher
from raymotion.vocabulary import MIKELS_8

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json"]


def write(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a happy dog on the beach"], size=60, min_frequency=1)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 4})
    network, inputs = VisualBertTeacher(config, len(MIKELS_8)), [Captions(64, tokenizer=tokenizer)]
    save_checkpoint(folder, get_kind("teacher-visualbert"), network, inputs, [MultiLabel(MIKELS_8)], training={})
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with things beside it that must stay at home."""
    folder = write(tmp_path_factory.mktemp("hub") / "t")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "notes.txt").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_there_and_back_through_a_folder_and_a_store(teacher: Path, tmp_path: Path, s3: str) -> None:
    fingerprint = read_checkpoint_info(teacher).fingerprint
    assert hub.push(teacher, f"{s3}/models/t").info.fingerprint == fingerprint
    assert storage.list_names(f"{s3}/models/t") == FILES
    assert hub.pull(f"{s3}/models/t", tmp_path / "back").info.fingerprint == fingerprint
    assert contents(tmp_path / "back") == {name: (teacher / name).read_bytes() for name in FILES}
    assert hub.push(tmp_path / "back", tmp_path / "twice").target == str(tmp_path / "twice")
    hub.push(tmp_path / "back", tmp_path / "twice")  # the same again is no conflict
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "twice"], "nothing half-made is left"
    model = load_model(tmp_path / "twice")
    captions = model.info.input("captions")
    assert isinstance(captions, Captions)
    assert model.predict({"captions": captions.tokens([["dog"]])})["emotions"].shape == (1, 8)


def test_nothing_else_is_overwritten(teacher: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=1)
    before = contents(other)
    with pytest.raises(InputError, match=r"other: holds another checkpoint \([0-9a-f]{16}\).*--overwrite"):
        hub.push(teacher, other)
    with pytest.raises(InputError, match="not part of a checkpoint"):
        hub.push(other, teacher)
    with pytest.raises(InputError, match="is the checkpoint itself"):
        hub.push(other, other)
    assert contents(other) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        hub.pull(teacher, tmp_path / "file")
    with pytest.raises(InputError, match="--private is for repositories"):
        hub.push(teacher, tmp_path / "x", private=True)
    hub.push(teacher, other, overwrite=True)
    assert read_checkpoint_info(other).fingerprint == read_checkpoint_info(teacher).fingerprint


def test_a_damaged_checkpoint_does_not_travel(teacher: Path, tmp_path: Path) -> None:
    for name in FILES:
        storage.write_bytes(tmp_path / "cut" / name, (teacher / name).read_bytes())
    (tmp_path / "cut" / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged or cut off"):
        hub.push(tmp_path / "cut", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("owner/name", "owner/name"), ("hf://owner/name", "owner/name"), ("My-Org/bert.v1_2", "My-Org/bert.v1_2"),
        ("./owner/name", None), ("/owner/name", None), ("teacher", None), ("teacher/", None), ("a/b/c", None),
        ("../a", None), ("s3://bucket/name", None), ("~/name", None), ("owner/..", None),
    ],
)  # fmt: skip
def test_what_is_a_repository(place: str, expected: str | None) -> None:
    assert hub.hub_id(place) == expected


def test_a_name_that_could_be_both_is_not_guessed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.push(teacher, "./owner/name")
    told = r"Write hf://owner/name for the hub, \./owner/name for the folder"
    with pytest.raises(InputError, match=told):
        hub.pull("owner/name", tmp_path / "out")
    with pytest.raises(InputError, match=told):
        hub.push(teacher, "owner/name")
    hub.pull("./owner/name", tmp_path / "out")
    with pytest.raises(InputError, match="hf://owner: is not a repository"):
        hub.pull("hf://owner", tmp_path / "out2")


def test_no_network_is_one_line(teacher: Path, tmp_path: Path) -> None:
    """The whole test run is under HF_HUB_OFFLINE."""
    with pytest.raises(RunFailed, match="hf://owner/name"):
        hub.pull("owner/name", tmp_path / "out")
    with pytest.raises(RunFailed, match="HF_HUB_OFFLINE is set"):
        hub.push(teacher, "owner/name")
    assert not (tmp_path / "out").exists()


class FakeHub(ThreadingHTTPServer):
    """As much of the hub's HTTP interface as pushing and pulling a repository of models needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {"files": {}, "private": asked.get("visibility") == "private"})
            return self.answer(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        owner, name, action = path.removeprefix("/api/models/").split("/")[:3]
        repository = self.server.repositories[f"{owner}/{name}"]
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        assert action == "commit"
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                repository["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        url = f"{self.server.address}/{owner}/{name}/commit/{'0' * 40}"
        return self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "pullRequestUrl": None})

    def do_GET(self) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if parts[0] == "api" and parts[1] == "whoami-v2":
            return self.answer(200, {"type": "user", "name": "owner"})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        files = repository["files"]
        if parts[0] == "api":
            if len(parts) > 4 and parts[4] == "tree":
                tree = [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in files.items()]
                return self.answer(200, tree)
            siblings = [{"rfilename": n, "size": len(d), "blobId": _etag(d)} for n, d in files.items()]
            return self.answer(
                200, {"id": name, "sha": "0" * 40, "siblings": siblings, "private": repository["private"]}
            )
        data = files["/".join(parts[4:])]
        return self.answer(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.server.tokens.add(self.headers.get("Authorization", "none"))
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.slow
def test_the_hub_over_http(fake_hub: FakeHub, run_command: Callable[..., Any], teacher: Path, tmp_path: Path) -> None:
    """The real client in the real command; only the other end of the wire is ours."""
    env = {
        "HF_ENDPOINT": fake_hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "h"),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    pushed = run_command("push", teacher, "owner/emotions", "--private", env=env)
    assert pushed.code == 0, pushed.err
    info = read_checkpoint_info(teacher)
    assert f"teacher-visualbert {info.fingerprint} -> hf://owner/emotions" in pushed.out
    repository = fake_hub.repositories["owner/emotions"]
    assert repository["private"] is True and sorted(set(repository["files"]) - {".gitattributes"}) == FILES
    repository["files"]["pytorch_model.bin"] = b"a pickle that nobody asked for"

    pulled = run_command("pull", "owner/emotions", "--out", tmp_path / "back", env=env)
    assert pulled.code == 0, pulled.err
    assert contents(tmp_path / "back") == {name: (teacher / name).read_bytes() for name in FILES}

    fake_hub.repositories["owner/other"] = {"files": {"pytorch_model.bin": b"pickle"}, "private": False}
    foreign = run_command("pull", "owner/other", "--out", tmp_path / "x", env=env)
    assert foreign.code == 2 and foreign.err.count("\n") == 1, foreign.err
    assert "hf://owner/other: is not a checkpoint" in foreign.err or "no such checkpoint" in foreign.err
    public = run_command("push", teacher, "owner/other", "--private", env=env)
    assert public.code == 2 and "is public, and --private was asked for" in public.err
    assert list(fake_hub.repositories["owner/other"]["files"]) == ["pytorch_model.bin"]
    refused = run_command("push", teacher, "owner/emotions", env={**env, "HF_TOKEN": "wrong"})
    assert refused.code == 2 and "may not push (the hub answers 401)" in refused.err and "HF_TOKEN" in refused.err
    assert refused.err.count("\n") == 1 and not (tmp_path / "x").exists()
