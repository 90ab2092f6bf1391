"""`pit-jax data prepare`: download a TensorFlow Datasets set and write it as ArrayRecord.

The one place that needs TensorFlow (to encode images), and so an extra of its own.
"""

import difflib
import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pit_jax import installation
from pit_jax.data.sources import data_dir
from pit_jax.errors import ConfigError, StorageError

_HOST = "storage.googleapis.com"  # where TensorFlow Datasets looks first


def prepare(name: str, directory: str | None = None, report: Callable[[str], None] = print) -> Path:
    """Downloads `name` and writes it as ArrayRecord; does nothing if that was done before.

    Args:
      name: as TensorFlow Datasets calls it, with `:version` if wanted.
      directory: where prepared sets lie; default $TFDS_DATA_DIR.
      report: takes lines about what happens.

    Returns:
      The directory of the prepared set.

    Raises:
      ConfigError: if the set or TensorFlow is missing.
      StorageError: if it cannot be downloaded or written.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(
            f"preparing a data set needs TensorFlow: {installation.extra('prepare')}"
            " (training and reading do not)"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    root = data_dir(directory or "")
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"TensorFlow Datasets knows no set {name!r}{hint}") from None
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"data set {name!r}: {' '.join(str(error).split())[:200]}") from None
    path = Path(builder.data_path)
    if (path / "dataset_info.json").exists():
        report(f"{name} is prepared already: {path}")
        return path
    report(f"preparing {name} in {path}")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is None and _offline():
        raise StorageError(f"{name} could not be prepared: no network ({_HOST} is not found)")
    try:
        builder.download_and_prepare()
    except Exception as error:  # every downloader has errors of its own
        raise StorageError(f"{name} could not be prepared: {_reason(error)}") from None
    report(f"{name} is ready: {path}")
    return path


def _offline() -> bool:
    """Whether not even a name can be looked up. The downloader would retry for minutes."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return False
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError:
        return True
    return False


def _reason(error: Exception) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ConnectionError", "ProxyError", "Timeout", "URLError", "ClientError", "gaierror"}:
        return "no network, or the server of the set does not answer"
    return " ".join(str(error).split())[:300] or type(error).__name__
