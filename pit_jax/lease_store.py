"""Where a lease lies: a file or an object that is replaced only as it was read."""

import contextlib
import errno
import fcntl
import os
import time

from etils import epath

from pit_jax import files, installation
from pit_jax.errors import ConfigError, StorageError

_LOCKED_S = 10.0  # held for an instant, unless its holder was stopped just then
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class Disk:
    """A file on a disk, changed under a lock. A version is what the file holds."""

    def __init__(self, path: epath.Path):
        self.path = path
        self._lock = path.parent / ".lease.lock"  # empty; it goes with the lease
        with files.told(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> tuple[bytes | None, bytes | None]:
        """What it holds, and its version; both None if there is none."""
        with files.told(self.path, "read"):
            try:
                content = self.path.read_bytes()
            except FileNotFoundError:
                content = None
        return content, content

    def replace(self, content: bytes | None, version: bytes | None) -> bool:
        """Writes, or with None deletes it, if it is still of that version; whether it was."""
        descriptor = self._locked()
        try:
            if self.read()[1] != version:
                return False
            if content is None:
                self.path.unlink(missing_ok=True)
                self._lock.unlink(missing_ok=True)
            else:
                files.write(self.path, content)
            return True
        finally:
            os.close(descriptor)

    def _locked(self) -> int:
        """The lock's descriptor, once it is ours and still the file of that name."""
        while True:
            with files.told(self.path):
                descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._wait_for(descriptor)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self._lock)):
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # whoever held it has ended the lease, and the lock with it

    def _wait_for(self, descriptor: int) -> None:
        """Locks; a disk that knows no locks goes without."""
        deadline = time.monotonic() + _LOCKED_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in _TAKEN:
                    return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self.path} could not be written: a process that has stopped holds its lock"
                )
            time.sleep(0.01)


class Bucket:
    """An object of Google Cloud Storage. A version is its generation."""

    def __init__(self, path: epath.Path, timeout_s: float):
        try:
            import google.cloud.storage
            from google.cloud.storage.retry import DEFAULT_RETRY
        except ImportError:
            raise ConfigError(
                f"{path.parent}: writing to gs:// needs Google's client library:"
                f" {installation.extra('launch')}"
            ) from None
        self.path = path
        bucket, _, name = str(self.path).removeprefix("gs://").partition("/")
        with files.told(self.path, "read"):
            self._bucket = google.cloud.storage.Client(project=None).bucket(bucket)
        self._name = name
        self._options = {"timeout": timeout_s, "retry": DEFAULT_RETRY.with_timeout(timeout_s)}

    def read(self) -> tuple[bytes | None, int | None]:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with files.told(self.path, "read"):
            while True:
                blob = self._bucket.get_blob(self._name, **self._options)
                if blob is None:
                    return None, None
                try:
                    same = {"if_generation_match": blob.generation}
                    return blob.download_as_bytes(**same, **self._options), blob.generation
                except (NotFound, PreconditionFailed):  # changed since
                    continue

    def replace(self, content: bytes | None, version: int | None) -> bool:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._bucket.blob(self._name)
        same = {"if_generation_match": version or 0}
        with files.told(self.path):
            try:
                if content is None:
                    blob.delete(**same, **self._options)
                else:
                    blob.upload_from_string(content, **same, **self._options)
                return True
            except (NotFound, PreconditionFailed):
                # Or it was written, and only the answer was lost and the request repeated.
                return self.read()[0] == content
