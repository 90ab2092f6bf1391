"""A Kubernetes API server on loopback that keeps JobSets, and what leads a launch to it."""

import http.server
import json
import os
import pathlib
import shlex
import threading
import uuid
from collections.abc import Iterator

import pytest
import yaml

from pit_jax import cli
from pit_jax.launch import money

CONFIG = str(pathlib.Path(__file__).parent.parent.parent / "configs" / "digits.py") + ":pit"
IMAGE = "us-docker.pkg.dev/my-project/pit/pit_jax:1"
TOKEN = "a-token-that-is-a-secret"
FITS = {"fits": True, "hbm_peak_bytes": 2 << 30, "hbm_limit_bytes": 15 << 30}
FOUND = {"steps": {"train": FITS}, "chip_hours": 16.0, "cost": None}
_ROOT = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/"


def words(workdir: str, *more: str) -> list[str]:
    line = f"launch --config {CONFIG} --workdir {workdir} --target gke --image {IMAGE}"
    return [*shlex.split(line), "--accelerator", "v5litepod-16", *more]


class FakeCluster(http.server.ThreadingHTTPServer):
    """What it holds and was asked; `fail` makes the next calls of a method fail.

    Attributes:
      jobsets: by (namespace, name).
      calls: (method, path with its query, body).
      installed: whether the JobSet controller is.
      lasting: calls for which a deleted JobSet is still there.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobsets: dict[tuple[str, str], dict] = {}
        self.calls: list[tuple[str, str, dict]] = []
        self.installed = True
        self.lasting = 0
        self.failures: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, method: str, code: int, message: str) -> None:
        self.failures[method] = (code, message)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeCluster

    def do_GET(self) -> None:
        self._answer("GET", {})

    def do_POST(self) -> None:
        self._answer("POST", self._body())

    def do_DELETE(self) -> None:
        self._answer("DELETE", self._body())

    def _body(self) -> dict:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(text) if text else {}

    def _answer(self, method: str, body: dict) -> None:
        self.server.calls.append((method, self.path, body))
        code, answer = self._found(method, body)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if text[:1] == "{" else "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _found(self, method: str, body: dict) -> tuple[int, dict | str]:
        path, _, query = self.path.partition("?")
        jobsets = self.server.jobsets
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if method in self.server.failures:
            return _status(*self.server.failures[method])
        if not self.server.installed or not path.startswith(_ROOT):
            return 404, "404 page not found\n"
        namespace, kind, *name = path.removeprefix(_ROOT).split("/")
        assert kind == "jobsets"
        if namespace == "nowhere" and method == "POST":
            return _status(404, 'namespaces "nowhere" not found', "namespaces", namespace)
        if method == "POST":
            assert "fieldValidation=Strict" in query
            key = (namespace, body["metadata"]["name"])
            if key in jobsets:
                return _status(409, f'jobsets "{key[1]}" already exists', "jobsets", key[1])
            jobsets[key] = body | {"metadata": body["metadata"] | {"uid": uuid.uuid4().hex}}
            return 201, jobsets[key]
        key = (namespace, name[0])
        found = jobsets.get(key)
        if found and "deletionTimestamp" in found["metadata"]:
            self.server.lasting -= 1
            if self.server.lasting < 0:
                found = jobsets.pop(key) and None
        if found is None:
            return _status(404, f'jobsets "{name[0]}" not found', "jobsets", name[0])
        if method == "DELETE":
            assert body["preconditions"] == {"uid": found["metadata"]["uid"]}
            found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return 200, found

    def log_message(self, *words: object) -> None:
        pass


def _status(code: int, message: str, kind: str = "", name: str = "") -> tuple[int, dict]:
    details = {"details": {"kind": kind, "name": name}} if kind else {}
    return code, {"kind": "Status", "status": "Failure", "message": message, **details}


def write_kubeconfig(path: pathlib.Path, url: str) -> None:
    """Of two contexts, `here` and `there`; `here` is the one in use."""
    contexts = [
        {"name": name, "context": {"cluster": "it", "user": "me"}} for name in ("here", "there")
    ]
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": contexts,
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
    }
    path.write_text(yaml.safe_dump(kubeconfig))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[FakeCluster]:
    server = FakeCluster()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Launches to it --------------------------------------------------------------------------


@pytest.fixture
def ready(cluster, monkeypatch, tmp_path) -> FakeCluster:
    """The cluster on loopback, a preflight that knows its answer, and nobody at a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(money, "preflight", lambda *args: FOUND)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    return cluster


def launched(bucket: str, *more: str) -> int:
    return cli.run(words(bucket, "--name", "pit", *more))


def created(cluster: FakeCluster) -> list[dict]:
    return [body for method, _, body in cluster.calls if method == "POST"]


def condition(cluster: FakeCluster, kind: str) -> None:
    (found,) = cluster.jobsets.values()
    found["status"] = {"conditions": [{"type": kind, "status": "True"}]}
