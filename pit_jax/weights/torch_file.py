"""Reading the tensors of a PyTorch .pth file without PyTorch, and without running its pickle.

torch.save writes a pickle that refers to raw storages, since 1.6 beside each other in a zip
archive, before that one after the other in one file. A pickle may name any Python function
to call; here only the three or four names that a dict of tensors needs mean anything. Whatever
else is named, such as the arguments in a training checkpoint, is left unread: nothing of it is
imported or called, and where it stands for a tensor the file is refused.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from pit_jax.errors import ConfigError, StorageError

_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before 1.6
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


def tensors(
    content: bytes, where: str, choose: Callable[[Any], Any] = lambda found: found
) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name.

    Args:
      content: of the file.
      where: what an error calls it.
      choose: takes what the file holds and returns the state dict in it; only its tensors are
        read. By default the file is one.

    Raises:
      ConfigError: if it is intact but holds anything else than a dict of plain tensors.
      StorageError: if it is truncated or no PyTorch file at all.
    """
    try:
        load = _zipped if zipfile.is_zipfile(io.BytesIO(content)) else _legacy
        found = load(content, choose)
    except _Refused as error:
        raise ConfigError(
            f"{where}: its pickle asks for {error}, which is not read: save the state_dict() alone"
        ) from None
    except Exception as error:  # a damaged pickle fails in every way there is
        raise StorageError(
            f"{where} is no intact PyTorch file: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(x, np.ndarray) for x in found.values()):
        raise ConfigError(f"{where} holds no dict of tensors: save the state_dict() alone")
    return found


class _Refused(Exception):
    pass


class _Unread:
    """Stands for what a pickle would have made of a name that means nothing here. It takes what
    pickles do to an object, and keeps nothing of it."""

    named = ""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def _ignore(self, *_args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = __call__ = _ignore


class _Storage:
    """A raw storage, whose bytes may come after the pickle that refers to it."""

    def __init__(self, dtype: np.dtype, count: int):
        self.values = np.empty(count, dtype)

    def fill(self, content: bytes) -> None:
        values = np.frombuffer(content, self.values.dtype)
        if len(values) != len(self.values):
            raise ValueError(f"a storage has {len(values)} of {len(self.values)} numbers")
        self.values[:] = values

    def view(self, offset: int, shape: tuple, stride: tuple) -> np.ndarray:
        if any(n < 0 or s < 0 for n, s in zip(shape, stride, strict=True)):
            raise ValueError("a tensor has a negative size or stride")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if math.prod(shape) and not 0 <= offset <= last < len(self.values):
            raise ValueError("a tensor reaches beyond its storage")
        size = self.values.dtype.itemsize
        strides = tuple(size * s for s in stride)
        return np.ndarray(shape, self.values.dtype, self.values, offset * size, strides)


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts, storages and tensors; storages are created as they are named."""

    def __init__(self, file: io.BytesIO, most: int = 0):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self.most = most

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return type("_Unread", (_Unread,), {"named": f"{module}.{name}"})

    def persistent_load(self, identity: tuple) -> Any:
        if identity[0] == "module":  # a class and its source, before 1.6
            return identity[1]
        kind, dtype, key, _location, count, *view = identity
        if kind != "storage" or (view and view[0] is not None):
            raise _Refused(f"a {kind} with a view")
        if key not in self.storages:
            if not 0 <= count * dtype.itemsize <= self.most:  # before memory is taken for it
                raise ValueError(f"a storage of {count} numbers is larger than the file")
            self.storages[key] = _Storage(dtype, count)
        return self.storages[key]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any):
    return storage.view(offset, shape, stride)


def _used(found: Any) -> set[int]:
    """Which storages' numbers the tensors of a dict are views of, by identity.

    Raises:
      _Refused: if something else that was left unread is among them.
    """
    parts = list(found.values()) if isinstance(found, dict) else [found]
    if unread := [part.named for part in parts if isinstance(part, _Unread)]:
        raise _Refused(unread[0])
    return {id(part.base) for part in parts if isinstance(part, np.ndarray)}


def _zipped(content: bytes, choose: Callable[[Any], Any]) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        folder = name.removesuffix("data.pkl")
        unpickler = _Unpickler(io.BytesIO(archive.read(name)), len(content))
        found = choose(unpickler.load())
        used = _used(found)
        for key, storage in unpickler.storages.items():
            if id(storage.values) in used:
                storage.fill(archive.read(f"{folder}data/{key}"))
    return found


def _legacy(content: bytes, choose: Callable[[Any], Any]) -> Any:
    file = io.BytesIO(content)
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it does not begin with PyTorch's magic number")
    for _ in ("protocol version", "byte order and sizes"):
        _Unpickler(file).load()
    unpickler = _Unpickler(file, len(content))
    found = choose(unpickler.load())
    used = _used(found)
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little")
        numbers = file.read(count * storage.values.dtype.itemsize)
        if id(storage.values) in used:
            storage.fill(numbers)
    return found
