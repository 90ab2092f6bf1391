"""`pit-jax sample`: images of a diffusion run, as files and as one file for ADM's evaluator.

DIR/images/000000.png, ...     image i of N
DIR/samples.npz                all of them (grey ones as RGB) and their labels, once all are there
DIR/sample.json                what they depend on

Image i is a function of (seed, i, its label) and the weights: a run that was cut off goes on
where it was, and more images can be asked for later. SIGTERM and Ctrl-C end it after the batch.
"""

import concurrent.futures
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from pit_jax import errors, files, image_files, metrics, rundir, signals
from pit_jax.config import label
from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.evals import reference
from pit_jax.evals.generator import Generator, choose_labels
from pit_jax.parallel import mesh as meshes
from pit_jax.restored import Restored, restore
from pit_jax.validation import resolve

_DESCRIPTION, _NPZ = "sample.json", "samples.npz"
# Of sample.json, what may differ when a directory is gone on with: the images do not depend
# on where something lies, nor (but for rounding) on the devices and the size of a batch.
_MAY_DIFFER = ("run", "num", "done", "npz_sha256", "batch_size", "environment")
_MAY_DIFFER += ("decoder.path", "decoder.name")
# What samples of old do not say, because there was no other.
_LATER = {"spacing": "linspace", "variance": "small"}
_LINES = 10  # at most, where there is no bar
_READ = 64  # images read back at a time
# Public DiT does the same, so it is no mistake to refuse: the same words give the same images.
_ONE_STEP = (
    "--steps 1 of a Gaussian diffusion is timestep 0, as in public DiT: noise is taken for an image"
    " that is all but done, and stays noise. Write --steps 2 or more"
)


def sample(
    config: Any,
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    labels: str | Sequence[int] | None = None,
    number: int | None = None,
    ema: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> epath.Path:
    """Generates `sample.num` images of a run; those that are there already stay.

    Args:
      config: the run's; mesh and `sample` may have been changed.
      workdir: the run directory; nothing is written there.
      out: the directory of the images, new or of the same samples.
      labels: see `evals.generator.choose_labels`.
      number: step of the checkpoint, the newest by default.
      ema: whether to sample from the moving average; by default if there is one.
      devices: those to use; all of them by default.

    Returns:
      The path of samples.npz.

    Raises:
      ConfigError: if it is no diffusion run, the options do not fit it, or `out` holds
        something else.
      NonFiniteLoss: if a sample is not finite.
      StorageError: if the checkpoint is damaged or a file cannot be written.
      Stopped: after a SIGTERM or Ctrl-C, once the batch's images are written.
    """
    config = resolve(config)
    if config.task != "diffusion":
        raise ConfigError(
            f"{workdir} was trained by task {config.task!r}: only diffusion runs generate images"
        )
    if ema and not config.optim.ema:
        raise ConfigError(
            f"--ema: {workdir} keeps no moving average (config.optim.ema=0), leave it out"
        )
    count = config.sample.num
    indices = np.arange(count)
    chosen, choice = choose_labels(config, indices, labels)
    mesh = meshes.make_mesh(config.mesh, devices)
    found = restore(config, workdir, mesh, number)
    averaged = config.optim.ema > 0 if ema is None else ema
    params = found.state.ema if averaged else found.state.params
    generator = Generator(config, found.task, found.steps, params, mesh)
    # Always whole batches: what `num` and the devices are decides nothing about an image.
    size = generator.batch_size
    target = epath.Path(out) if "://" in str(out) else epath.Path(out).expanduser().absolute()
    writes = jax.process_index() == 0
    description = {
        "schema": 1,
        "run": str(found.run.path),
        **_checkpoint(found),
        "ema": averaged,
        "num": count,
        **generator.provenance(choice),
        "batch_size": size,
    }
    before = _decided(lambda: _begin(target, description))
    environment = rundir.environment(mesh, jax.process_count())
    del environment["uncommitted"]
    description["environment"] = environment
    intact = _agreed(image_files.intact(target, count, generator.image_shape))
    finished = bool(intact.all()) and writes and _is_finished(target, before, count)
    if writes and not finished:
        _write_json(target, description | {"done": False})
    title = f"{label(config)} samples"
    progress = metrics.Progress(count, title, quiet=not writes)
    with progress, signals.StopRequest(mesh) as stop_request:
        if writes and config.diffusion.family == "gaussian" and config.sample.steps == 1:
            progress.warn(_ONE_STEP)
        if intact.any():
            progress.say(f"{target}: {intact.sum()} of {count} images are there already")
            progress.update(int(intact.sum()))
        try:
            for start, images in _missing(generator, chosen, indices, size, intact, progress):
                if writes:
                    new = np.flatnonzero(~intact[start : start + len(images)])
                    image_files.write(target, start + new, images[new])
                intact[start : start + len(images)] = True
                if asked := stop_request.asked():
                    raise signals.stopped(asked, f"{intact.sum()} of {count} images are written")
        except BaseException:
            if writes:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    for path in (target / "images").iterdir():  # a glob would take the name of
                        if path.name.startswith(".") and path.name.endswith(".tmp"):  # `target` too
                            path.unlink(missing_ok=True)
            raise
        if writes:
            if not finished:
                # Process 0 is alone here and has nobody to agree with on stopping.
                asked = stop_request.asked if jax.process_count() == 1 else lambda: 0
                _finish(target, description, chosen, generator.image_shape, asked)
            progress.say(f"{count} images in {target}/images, all of them in {target / _NPZ}")
    return target / _NPZ


def _missing(
    generator: Generator,
    labels: np.ndarray,
    indices: np.ndarray,
    size: int,
    intact: np.ndarray,
    progress: metrics.Progress,
) -> Iterator[tuple[int, np.ndarray]]:
    """Each batch of which an image is missing, with its first index.

    Batches begin at multiples of `size` whatever is there: an image that is made again comes
    from the same batch, and has the same bits.
    """
    intact = intact.copy()  # the caller notes there what it has written
    count, done, shown, since = len(indices), int(intact.sum()), 0, None
    for start in range(0, count, size):
        part = slice(start, start + size)
        if intact[part].all():
            continue
        yield start, generator.batch(labels[part], indices[part], size)
        new = int((~intact[part]).sum())
        done += new
        now = time.perf_counter()
        if since is None:  # the first batch compiles
            since, made, rate = now, 0, 0.0
        else:
            made += new
            rate = made / (now - since)
        left = (count - done) / rate if rate else 0.0
        progress.update(done, rate=rate, left=left)
        if done * _LINES // count > shown:
            shown = done * _LINES // count
            progress.line(done, None, rate, left)


def _checkpoint(found: Restored) -> dict[str, Any]:
    """Which weights; the manifest has the sums of all their files."""
    manifest = found.run.path / "manifests" / f"{found.number}.json"
    return {"checkpoint_step": found.number, "checkpoint_sha256": files.sha256(manifest)}


# The directory ----------------------------------------------------------------------------


def _decided(decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What process 0 returns or raises, on all of them.

    A directory may look different on another host, or a moment later: no two may disagree.
    """
    if jax.process_count() == 1:
        return decide()
    said = b""
    if jax.process_index() == 0:
        try:
            outcome = {"result": decide()}
        except PitError as error:
            outcome = {"error": type(error).__name__, "line": str(error)}
        said = json.dumps(outcome).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    content = np.frombuffer(said or bytes(length), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)
    outcome = json.loads(content.tobytes())
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["line"])
    return outcome["result"]


def _begin(target: epath.Path, description: dict[str, Any]) -> dict[str, Any]:
    """What sample.json said before, {} in a new directory.

    Raises:
      ConfigError: if the directory holds other samples, or something else.
    """
    path = target / _DESCRIPTION
    try:
        if not path.exists():
            found = [p.name for p in target.iterdir()] if target.exists() else []
            others = [name for name in found if not name.startswith(".")]
            if others:
                raise ConfigError(
                    f"--out {target} holds no samples but other files ({min(others)}, ...): name"
                    " an empty or new directory"
                )
            return {}
        before = json.loads(path.read_text())
        if not (isinstance(before, dict) and isinstance(before.get("num"), int)):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"--out {target}: {error.strerror or error}") from None
    except ValueError:
        raise StorageError(f"{path} is damaged: sample into another directory") from None
    new = _flat(json.loads(json.dumps(description)))
    old = {name: value for name, value in _LATER.items() if name in new} | _flat(before)
    differs = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in dict.fromkeys((*new, *old))
        if old.get(name) != new.get(name) and not _may_differ(name, old)
    ]
    if differs:
        raise ConfigError(
            f"--out {target} holds other samples: {'; '.join(differs)}. Name another directory,"
            " or give the values that it had"
        )
    if before["num"] > description["num"]:
        raise ConfigError(
            f"--out {target} is of {before['num']} images: num cannot become"
            f" {description['num']}, name another directory"
        )
    return before


def _may_differ(name: str, old: dict[str, Any]) -> bool:
    # A decoder is its weights, in whichever file; samples of old say only the file's sum.
    by_weights = "decoder.weights_sha256" in old
    ignored = "decoder.sha256" if by_weights else "decoder.weights_sha256"
    return name in (*_MAY_DIFFER, ignored) or name.startswith("environment.")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _agreed(intact: np.ndarray) -> np.ndarray:
    """What process 0 found, on all of them: they generate alike."""
    if jax.process_count() == 1:
        return intact
    return np.array(multihost_utils.broadcast_one_to_all(intact))


def _is_finished(target: epath.Path, before: dict[str, Any], count: int) -> bool:
    """Whether samples.npz holds so many images, and is as it was written."""
    path = target / _NPZ
    if not (before.get("done") and before["num"] == count and path.exists()):
        return False
    return before.get("npz_sha256") == files.sha256(path)


def _finish(
    target: epath.Path,
    description: dict[str, Any],
    labels: np.ndarray,
    shape: tuple[int, int, int],
    asked: Callable[[], int],
) -> None:
    """Writes samples.npz from the files, and that all is done.

    Raises:
      Stopped: if a signal is `asked` for meanwhile; there is no samples.npz of these then.
    """
    count = len(labels)
    path = target / _NPZ
    said = {name: x for name, x in description.items() if name not in ("run", "environment")}

    def images() -> Iterator[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor(image_files.THREADS, "sample") as pool:
            for start in range(0, count, _READ):
                if number := asked():
                    raise signals.stopped(number, f"all {count} images are written, {_NPZ} is not")
                numbers = range(start, min(start + _READ, count))
                yield np.stack(
                    list(
                        pool.map(
                            image_files.read, (image_files.path_of(target, i) for i in numbers)
                        )
                    )
                )

    reference.write_images(path, images(), (count, *shape[:2], 3), said, labels)
    _write_json(target, description | {"done": True, "npz_sha256": files.sha256(path)})


def _write_json(target: epath.Path, content: dict[str, Any]) -> None:
    files.write(target / _DESCRIPTION, (json.dumps(content, indent=2) + "\n").encode())
