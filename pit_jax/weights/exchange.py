"""`pit-jax weights import|export`: between run directories and the files other tools read."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pit_jax import checkpoint, configfile, rundir, tasks
from pit_jax.config import assign, base, flatten
from pit_jax.errors import ConfigError
from pit_jax.models.normalisation import Normalisation
from pit_jax.tasks.autoencoder import build_model
from pit_jax.validation import resolve
from pit_jax.weights import (
    autoencoder,
    dit_files,
    huggingface,
    huggingface_directory,
    huggingface_mae,
    initial,
    load,
    tensors,
)

# Tasks and models whose own fields shape the model.
GROUPS = ("mae", "diffusion", "autoregressive", "convnet", "perceiver")


def export_weights(
    source: str, target: str, layout: str, report: Callable[[str], None] = print
) -> None:
    """Writes the evaluated weights of a run.

    An autoencoder's Hugging Face directory is one of diffusers; its latents' normalisation is
    that of the held-out set, from the newest evaluation up to the checkpoint.

    Args:
      source: the run directory.
      target: "huggingface": a directory; "pit_jax" and "public": a .safetensors file.
      layout: which of them; "public" has the names of public DiT.

    Raises:
      ConfigError: if the run has no checkpoint, or is an autoencoder's that was never
        evaluated.
      StorageError: if no checkpoint is intact, or the target cannot be written.
    """
    run = rundir.RunDir(source)
    config = run.config()
    saved = checkpoint.Checkpoints(run)
    if not saved.steps():
        raise ConfigError(f"{source} holds no checkpoint yet")
    step = saved.newest_intact(report, repair=False)
    if layout == "public" and config.task != "diffusion":
        raise ConfigError(
            f"--format public is public DiT's: {source} was trained by task {config.task!r}"
        )
    if layout == "huggingface" and config.task == "depth":
        raise ConfigError(
            f"{source} was trained by task 'depth', whose head Hugging Face's ViT has not: write"
            " --format pit_jax"
        )
    params = saved.read_weights(step)
    if config.task == "autoencoder":
        model, normalisation = build_model(config), measured(run, step)
        if layout == "huggingface":
            autoencoder.write_diffusers(target, model, params, normalisation)
        else:
            autoencoder.write(target, model, params, normalisation, trained_name(run, step))
    elif layout == "public":
        dit_files.write_public(target, params, config)
    elif layout == "pit_jax":
        tensors.write(target, tensors.flatten(params), _model_fields(config))
    elif config.task == "diffusion":
        dit_files.write_diffusers(target, params, config)
    else:
        huggingface_directory.write(target, params, config)
    report(f"weights of step {step} written to {target}")


def import_weights(
    source: str,
    target: str,
    spec: str | None,
    interpolate: bool,
    report: Callable[[str], None] = print,
) -> None:
    """Turns public weights into a .safetensors file for `config.init_from`.

    Args:
      source: a Hugging Face directory, or its .safetensors file (then `spec` is needed); for a
        diffusion model see `dit_files.read`.
      target: the file to write.
      spec: FILE[:ARG] of the model it becomes; by default what its config.json says.
      interpolate: resample positions learned at another image size.
    """
    root = epath.Path(source)
    config = configfile.load(spec) if spec else None
    untold = config is None or config.task != "diffusion"
    if root.is_dir() and untold and dit_files.is_one(root):
        raise ConfigError(
            f"{source} holds a DiT, whose config.json does not say how it was trained: name a"
            " diffusion model by --config FILE[:ARG]"
        )
    if config is not None:
        if config.task == "autoencoder":
            raise ConfigError(
                "public autoencoders need no import: name the file or directory as"
                " config.autoencoder.weights, or as --vae of `pit-jax data latents`"
            )
        if root.is_dir() and config.task != "diffusion":
            initial.check_fields(source, huggingface_directory.fields(root), config)
    elif root.is_dir():
        config = _described(root)
    else:
        raise ConfigError(
            f"{source} is no directory with a config.json: name the model by --config"
        )
    if interpolate and config.task != "classification":
        raise ConfigError(f"--interpolate: task {config.task!r} belongs to one image size")
    params: Any
    if config.task == "diffusion":
        params = dit_files.read(source, config)
    elif config.task == "mae":
        found, _ = tensors.read(root / "model.safetensors" if root.is_dir() else root)
        groups = (config.model, config.data, config.mae)
        params = huggingface_mae.from_huggingface(found, *groups)
    else:
        found, _ = tensors.read(root / "model.safetensors" if root.is_dir() else root)
        params = huggingface.from_huggingface(found, config.model, config.data, interpolate)
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.key(0))
    merged, _ = load.merge(shapes, params, may_be_new=())
    tensors.write(target, tensors.flatten(merged), _model_fields(config))
    count = sum(x.size for x in jax.tree.leaves(merged))
    report(f"{count:,} parameters written to {target}: use it as config.init_from")


def trained_name(run: rundir.RunDir, step: int) -> str:
    """What the file of an autoencoder that was trained here is called."""
    return f"{run.path.name} at step {step}"


def measured(run: rundir.RunDir, step: int) -> Normalisation:
    """Of an autoencoder's latents, as the newest evaluation up to a step found them.

    A store of latents and an exported file take it from here alike: of equal bytes, each is
    accepted as the decoder of the other's.

    Raises:
      ConfigError: if there was no such evaluation.
    """
    for row in reversed(run.rows()):
        if row["step"] <= step and "eval/latent_std" in row:
            return Normalisation(row["eval/latent_mean"], 1 / row["eval/latent_std"])
    raise ConfigError(
        f"{run.path} has no evaluation up to step {step} that says how its latents are scaled:"
        " train with config.eval.what=('reconstruction',)"
    )


def _described(root: epath.Path) -> Any:
    """The config of the model that a Hugging Face directory holds."""
    config = base()
    config.train.steps = 1
    for name, value in huggingface_directory.fields(root).items():
        assign(config, name, value)
    if config.task == "mae":  # whose positions are computed tables, unless we made it
        found, _ = tensors.read(root / "model.safetensors")
        config.model.position, config.mae.decoder_position = huggingface_mae.positions(found)
    return resolve(config)


def _model_fields(config: Any) -> dict[str, Any]:
    own = {config.task, config.model.name}.intersection(GROUPS)
    kept = ("task", "model.", "data.", *(f"{group}." for group in own))
    return {k: v for k, v in flatten(config).items() if k.startswith(kept)}
