"""`pit-jax weights import|export`: between run directories and the files other tools read."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pit_jax import checkpoint, configfile, rundir, tasks
from pit_jax.config import FIELDS, assign, base, flatten
from pit_jax.data import identity
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
    public_vit,
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
            f"{source} was trained by task 'depth', whose head is not in Hugging Face's ViT: write"
            " --format pit_jax"
        )
    params, kept = saved.read_weights(step), identity.of_run(run)
    classes = kept.classes if kept else ()
    if config.task == "autoencoder":
        model, normalisation = build_model(config), measured(run, step)
        if layout == "huggingface":
            autoencoder.write_diffusers(target, model, params, normalisation)
        else:
            autoencoder.write(target, model, params, normalisation, trained_name(run, step))
    elif layout == "public":
        dit_files.write_public(target, params, config)
    elif layout == "pit_jax":
        named = {"classes": list(classes)} if classes else {}
        tensors.write(target, tensors.flatten(params), _model_fields(config) | named)
    elif config.task == "diffusion":
        dit_files.write_diffusers(target, params, config)
    else:
        huggingface_directory.write(target, params, config, classes)
        if config.data.permutation.swaps:
            report(
                f"{source} was trained on permuted pixels, which {target} does not say: permute"
                " images by config.data.permutation before it sees them"
            )
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
    said: dict[str, Any] = {}
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
            said = huggingface_directory.fields(root)
            initial.check_fields(source, said, config)
            config.data.update({"mean": said.get("data.mean", config.data.mean)})
            config.data.update({"std": said.get("data.std", config.data.std)})
    elif root.is_dir():
        said = huggingface_directory.fields(root)
        config = _described(root, said)
    else:
        raise ConfigError(
            f"{source} is no directory with a config.json: name the model by --config"
        )
    if interpolate and config.task != "classification":
        raise ConfigError(f"--interpolate: task {config.task!r} belongs to one image size")
    params: Any
    if config.task == "diffusion":
        params = dit_files.read(source, config, report)
    elif config.task == "mae":
        groups = (config.model, config.data, config.mae)
        params = huggingface_mae.from_huggingface(_tensors(root, report), *groups)
    else:
        found = _tensors(root, report)
        params = huggingface.from_huggingface(found, config.model, config.data, interpolate)
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.key(0))
    if "head" in shapes and "head" not in params:  # a new one is what fine-tuning makes
        del shapes["head"]
        report(f"{source} has no head: it will be a new one")
    merged, _ = load.merge(shapes, params, may_be_new=())
    kept = _model_fields(config)
    for name in ("data.mean", "data.std"):
        if name not in said:  # nobody knows
            del kept[name]
    kept |= {"classes": said["classes"]} if said.get("classes") else {}
    tensors.write(target, tensors.flatten(merged), kept)
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


def _tensors(root: epath.Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Those of a Vision Transformer, in a Hugging Face directory or a file."""
    found = public_vit.read(huggingface_directory.weights(root) if root.is_dir() else root)
    if found.note:
        report(found.note)
    return found.tensors


def _described(root: epath.Path, said: dict[str, Any]) -> Any:
    """The config of the model that a Hugging Face directory holds."""
    config = base()
    config.train.steps = 1
    for name, value in said.items():
        if name in FIELDS:
            assign(config, name, value)
    if config.task == "mae":  # whose positions are computed tables, unless we made it
        found = public_vit.read(huggingface_directory.weights(root)).tensors
        config.model.position, config.mae.decoder_position = huggingface_mae.positions(found)
    return resolve(config)


def _model_fields(config: Any) -> dict[str, Any]:
    own = {config.task, config.model.name}.intersection(GROUPS)
    kept = ("task", "model.", "data.", *(f"{group}." for group in own))
    return {k: v for k, v in flatten(config).items() if k.startswith(kept)}
