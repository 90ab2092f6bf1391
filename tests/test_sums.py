"""Sums: made where the bytes are, told by a bucket, and checked wherever the files lie now."""

import base64
import hashlib
import http.client
import http.server
import threading
import urllib.parse

import gcsfs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath.backend import fsspec_backend

from pit_jax import checkpoint, files, rundir, sums

from . import gcs

FILES = {"a": b"one", "below/b": b"two", "below/deeper/c": b""}


def filled(folder) -> epath.Path:
    folder = epath.Path(folder)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def with_sha256() -> dict:
    """As manifests have always had them."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_on_a_disk_they_are_sha256(tmp_path):
    assert sums.of_folder(filled(tmp_path / "x")) == with_sha256()
    assert sums.of_folder(epath.Path(tmp_path / "none")) == {}


def test_a_bucket_tells_its_own(bucket, monkeypatch):
    folder = filled(f"{bucket}/x")
    monkeypatch.setattr(epath.Path, "open", lambda *_: pytest.fail("nothing is fetched"))
    found = sums.of_folder(folder)
    assert found == {n: {"bytes": len(c), "md5": md5(c)} for n, c in FILES.items()}
    assert sums.problems(folder, found) == []


@pytest.mark.parametrize("there", ["disk", "bucket"])
@pytest.mark.parametrize("kind", ["sha256", "md5", "crc32c"])
def test_any_kind_is_checked_anywhere(there, kind, tmp_path, bucket):
    """Old manifests in a bucket, and runs that were copied from there."""
    google_crc32c = pytest.importorskip("google_crc32c")
    made = {
        "sha256": lambda content: hashlib.sha256(content).hexdigest(),
        "md5": md5,
        "crc32c": lambda content: base64.b64encode(
            google_crc32c.Checksum(content).digest()
        ).decode(),
    }[kind]
    folder = filled(tmp_path / "x" if there == "disk" else f"{bucket}/x")
    expected = {n: {"bytes": len(c), kind: made(c)} for n, c in FILES.items()}
    assert sums.problems(folder, expected) == []
    (folder / "below/b").write_bytes(b"tvo")
    label = {"sha256": "SHA-256", "md5": "MD5", "crc32c": "CRC32C"}[kind]
    assert sums.problems(folder, expected) == [f"below/b has changed ({label} differs)"]
    (folder / "a").write_bytes(b"ones")
    (folder / "more").write_bytes(b"")
    assert sums.problems(folder, {**expected, "gone": {"bytes": 1, kind: "x"}})[1:] == [
        "a has 4 bytes, not 3",
        f"below/b has changed ({label} differs)",
        "more does not belong to it",
    ]


def test_a_file_without_a_sum_is_not_intact(tmp_path):
    folder = filled(tmp_path / "x")
    expected = with_sha256() | {"a": {"bytes": 3}}
    assert sums.problems(folder, expected) == ["a has no sum in the manifest"]


class Counting(http.server.BaseHTTPRequestHandler):
    """Hands requests on to the storage server, and counts the bytes that come back."""

    protocol_version = "HTTP/1.1"
    target, fetched = "", 0

    def _pass_on(self) -> None:
        server = http.client.HTTPConnection(self.target)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.request(self.command, self.path, body, dict(self.headers.items()))
        answer = server.getresponse()
        content = answer.read()
        type(self).fetched += len(content)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                # Uploads go on where the server says.
                self.send_header(name, value.replace(self.target, self.headers["Host"]))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def counted(bucket, monkeypatch):
    """The bucket behind a server that counts, and how much was fetched."""
    target = urllib.parse.urlparse(gcs.server()).netloc
    handler = type("Handler", (Counting,), {"target": target})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in gcs.environment(url).items():
        monkeypatch.setenv(name, value)
    forget = fsspec_backend._get_filesystem.cache_clear, gcsfs.GCSFileSystem.clear_instance_cache
    for clear in forget:
        clear()
    yield bucket, handler
    for clear in forget:
        clear()
    server.shutdown()
    server.server_close()


def test_a_checkpoint_in_a_bucket_is_not_fetched_to_be_summed(counted):
    bucket, handler = counted
    noise = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
    state = {"w": jnp.asarray(noise)}  # 1.4 MB that do not compress
    saved = checkpoint.Checkpoints(rundir.RunDir(f"{bucket}/run"))
    saved.save(1, state, {})
    saved.finish()
    written = handler.fetched
    assert saved.verify(1) == []
    assert 0 < written < noise.nbytes / 4
    assert handler.fetched - written < noise.nbytes / 4
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = {"w": jax.ShapeDtypeStruct(noise.shape, noise.dtype, sharding=device)}
    np.testing.assert_array_equal(saved.restore(1, shape)["w"], noise)
    assert handler.fetched > noise.nbytes  # the count counts
    saved.close()


@pytest.mark.parametrize("told", [True, False])
def test_each_process_sums_the_files_that_it_wrote(told, tmp_path, monkeypatch):
    """Process 0 of three fetches nothing of what the others wrote, unless they say nothing."""
    folder = epath.Path(tmp_path / "checkpoints" / "5")
    for process in range(3):
        filled(folder / f"ocdbt.process_{process}")
    filled(folder)
    expected, read = sums.of_folder(folder), []
    saved = [checkpoint.Checkpoints(rundir.RunDir(tmp_path)) for _ in range(3)]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    original = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or original(path))
    for process in (1, 2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        if told:
            saved[process]._sum_share(5)
            assert {path.parts[-2] for path in read} <= {
                "below",
                "deeper",
                f"ocdbt.process_{process}",
            }
            read.clear()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(checkpoint, "_PATIENCE_S", 5.0 if told else 0.0)
    saved[0]._write_manifest(5, {})
    manifests = [path.name for path in (tmp_path / "manifests").iterdir()]
    assert manifests == ["5.json"]
    assert saved[0]._manifest(5)["files"] == expected
    assert len(read) == (6 if told else 12)
    assert saved[0].steps() == [5]


def test_a_share_of_a_save_that_was_cut_off_is_not_believed(tmp_path, monkeypatch):
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path))
    stale = tmp_path / "manifests" / "1.process-1.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    monkeypatch.setattr(saved._checkpointer, "save", lambda *_: pytest.fail(str(stale.exists())))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(BaseException, match="False"):
        saved.save(1, {"w": jnp.zeros(3)}, {})
