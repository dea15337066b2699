"""Counts the requests of a job whose pictures, input and output lie in an S3 store on loopback, and delays them.

Makes `--images` synthetic COCO pictures, copies them into a moto server behind a proxy that counts (and, with
`--latency`, holds every request back for so many seconds), and runs `raymotion features regions` on them. Prints the
requests by kind, requests a picture, and the seconds from a worker's first request for a picture to the last commit
and to the end of the process.

    python benchmarks/s3_requests.py                              # 1,000 images: requests a picture
    python benchmarks/s3_requests.py --images 48 --latency 2      # how well latency is hidden
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PICTURE = re.compile(r"\.(jpg|jpeg|png)$")


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it: when it came, its method, its path (decoded) and its query."""

    at: float
    method: str
    path: str
    query: dict[str, list[str]]

    @property
    def kind(self) -> str:
        """What it is for: `GET picture`, `PUT commit` ..."""
        name = self.path.rsplit("/", 1)[-1]
        if "list-type" in self.query:
            return f"{self.method} listing"
        if PICTURE.search(name):
            return f"{self.method} picture"
        for mark, what in (
            ("/_commits/", "commit"), ("/_attempts/", "attempt note"), ("/_quarantine/", "quarantine"),
            ("/_manifest", "manifest"), ("/part-", "part"), ("_job.json", "_job.json"), (".probe", "probe"),
        ):  # fmt: skip
            if mark in self.path:
                return f"{self.method} {what}"
        return f"{self.method} other"


Fault = Callable[[Request, int], "tuple[Any, ...] | None"]


class Proxy:
    """A proxy on loopback in front of an S3 server: counts requests, delays them, and spoils answers.

    Attributes:
        requests: all that came.
        latency: seconds that each request is held back.
        fault: given a request and how many came before it for the same method and path, what to do instead of
            answering well: ("status", 503), ("reset",), ("cut", n) (announces all, sends n bytes), ("short", n)
            (announces n bytes, sends them), or None.
    """

    def __init__(self, upstream: str, latency: float = 0.0, fault: Fault | None = None) -> None:
        self.host = urlsplit(upstream).netloc
        self.latency, self.fault = latency, fault
        self.requests: list[Request] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass  # clients that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """As new: no delay, no faults, nothing counted."""
        self.latency, self.fault = 0.0, None
        self.requests.clear()
        self._seen.clear()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        request = Request(time.monotonic(), handler.command, unquote(address.path), parse_qs(address.query))
        with self._lock:
            self.requests.append(request)
            before = self._seen[request.method, request.path]
            self._seen[request.method, request.path] += 1
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if self.latency:
            time.sleep(self.latency)
        wrong = self.fault(request, before) if self.fault else None
        if wrong and wrong[0] == "reset":
            handler.close_connection = True
            return
        if wrong and wrong[0] == "status":
            self._send(handler, wrong[1], {"Content-Type": "application/xml"}, _error(wrong[1]), None)
            return
        upstream = http.client.HTTPConnection(self.host, timeout=60)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
        upstream.request(request.method, handler.path, body or None, headers)
        found = upstream.getresponse()
        data = found.read()
        given = {name: value for name, value in found.getheaders() if name.lower() not in ("connection", "server")}
        upstream.close()
        self._send(handler, found.status, given, data, wrong)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        data: bytes,
        wrong: tuple[Any, ...] | None,
    ) -> None:
        headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
        length = next((v for k, v in headers.items() if k.lower() == "content-length"), str(len(data)))
        headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        if wrong and wrong[0] == "short":
            data = data[: wrong[1]]
            length = str(len(data))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[: wrong[1]] if wrong and wrong[0] == "cut" else data)
        if wrong and wrong[0] == "cut":
            handler.close_connection = True


def _error(status: int) -> bytes:
    code = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}.get(status, "Injected")
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that every request is held back")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raymotion-s3-") as folder:
        result = run(Path(folder), arguments.images, arguments.latency, arguments.workers)
    print(json.dumps(result))


def run(work: Path, images: int, latency: float, workers: int) -> dict[str, Any]:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    from raymotion import storage
    from raymotion.data.readers.folder import FolderReader
    from raymotion.data.samples import write_samples
    from raymotion.data.synthetic.collections import write_coco

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    upstream = f"http://{host}:{port}"
    os.environ.update(
        AWS_ENDPOINT_URL=upstream, AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1",
    )  # fmt: skip
    from raymotion.stores import s3

    s3.filesystem().mkdir("bucket")
    write_coco(str(work / "coco"), images, 0)
    files = sorted((work / "coco" / "val2017").iterdir())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: storage.write_bytes(f"s3://bucket/pictures/{file.name}", file.read_bytes()), files))
    table, _ = FolderReader(folder="s3://bucket/pictures").read()
    write_samples("s3://bucket/samples.parquet", table)

    proxy = Proxy(upstream, latency)
    command = [
        sys.executable, "-m", "raymotion.cli.main", "features", "regions", "s3://bucket/samples.parquet",
        "--extractor", "fasterrcnn_mobilenet_v3_large_320_fpn", "--weights", "random:0", "--count", "8",
        "--workers", str(workers), "--out", "s3://bucket/features", "--progress", "none",
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
    )
    ended = time.monotonic()
    record = storage.read_json("s3://bucket/features/_job.json")
    proxy.close()
    moto.stop()

    kinds = Counter(request.kind for request in proxy.requests)
    # The preflight looks at a picture too, before Ray starts: what counts is the first that a worker asks for.
    ready = min(request.at for request in proxy.requests if "/_attempts/" in request.path)
    first = min(request.at for request in proxy.requests if request.kind == "GET picture" and request.at >= ready)
    last = latency + max(request.at for request in proxy.requests if request.kind == "PUT commit")
    result = {
        "images": images,
        "good": record["counts"]["good"],
        "shards": len(record["shards"]),
        "latency_s": latency,
        "requests": len(proxy.requests),
        "requests_per_image": round(len(proxy.requests) / images, 3),
        "picture_requests_per_image": round(sum(kinds[k] for k in kinds if k.endswith("picture")) / images, 3),
        "first_picture_to_last_commit_s": round(last - first, 1),
        "first_picture_to_end_s": round(ended - first, 1),
        "whole_s": round(ended - started, 1),
    }
    for kind, count in kinds.most_common():
        print(f"{kind:>20}  {count:6,}  {count / images:.3f} a picture")
    print("\n".join(f"{name:>28}  {value}" for name, value in result.items()))
    if result["good"] != images:
        raise SystemExit("FAILED: not every picture is in the result")
    return result


if __name__ == "__main__":
    main()
