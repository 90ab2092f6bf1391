"""Files that are there as a whole or not at all, and their checksums; local or gs://."""

import contextlib
import hashlib
from collections.abc import Iterator

from etils import epath

from pit_jax.errors import StorageError

_PIECE = 1 << 20


def sha256(path: epath.PathLike) -> str:
    """Of a file's bytes, as sha256sum prints it; read in pieces."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def whole(path: epath.PathLike) -> Iterator[epath.Path]:
    """Where to write what becomes the file at `path` once the block ends well.

    A reader finds the old bytes or the new ones, and no half of them; of a block that fails
    nothing stays. Folders are made.

    Raises:
      StorageError: if the file cannot be written.
    """
    target = epath.Path(path)
    temporary = target.parent / f".{target.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(target, error) from None
        raise


def write(path: epath.PathLike, content: str | bytes) -> None:
    """Replaces a file as a whole, see `whole`."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def storage_error(path: epath.PathLike, error: OSError) -> StorageError:
    """The one line for a file that could not be written."""
    return StorageError(f"{path} could not be written: {error.strerror or error}")
