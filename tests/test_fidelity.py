"""Training beside PyTorch: from the same weights, on the same batches, to the same losses.

Ours is the step that training runs. Theirs is transformers' model with our initial weights,
as `pit-jax weights export` writes them, and PyTorch's own AdamW, clipping and schedule.
"""

import collections
import math
import re

import jax
import numpy as np
import pytest

from pit_jax import configfile, step, tasks
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.tasks.mae import MaskedAutoencoding
from pit_jax.weights import huggingface_directory

from . import prepared_sets

pytestmark = pytest.mark.parity

BATCH = 4
WARMUP = 10  # steps
# What the recipe draws at random is off, and the gradient is clipped.
PLAIN = (
    "model.drop_path=0 model.dtype=float32 optim.clip=1 optim.lr_end=1e-5 optim.lr_batch=0"
    " data.augmentation.crop=none data.augmentation.flip=0 data.augmentation.grayscale=0"
    f" data.augmentation.jitter=(0.,0.,0.,0.) train.batch_size={BATCH} train.accumulate=1"
).split()


@pytest.fixture(scope="module")
def torch():
    reason = "make parity installs PyTorch and transformers"
    pytest.importorskip("transformers", reason=reason)
    torch = pytest.importorskip("torch", reason=reason)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other beside JAX's: ten times as long
    yield torch
    torch.set_num_threads(threads)


class GivenMasks(MaskedAutoencoding):
    """Masked autoencoding whose batches say which patches are kept."""

    def augment(self, batch: dict, key: jax.Array) -> dict:
        return {"image": self.augmented(batch, key)[0], "keep": batch["keep"]}


def resolved(spec: str, steps: int, *words: str):
    length = (f"train.steps={steps}", f"optim.warmup={WARMUP} steps")
    return configfile.load(spec, [f"--config.{word}" for word in (*PLAIN, *length, *words)])


def fixed_batches(config, steps: int) -> list[dict[str, np.ndarray]]:
    """The same examples in the same batches for both; of a masked autoencoder also noise
    (B, N), whose smallest entries are kept."""
    images, labels = prepared_sets.examples(steps * BATCH, seed=0)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(images)).reshape(steps, BATCH)
    patches = (config.data.image_size // config.model.patch) ** 2
    return [
        {
            "image": images[rows],
            "label": labels[rows].astype(np.int32),
            "noise": rng.random((BATCH, patches)).astype(np.float32),
        }
        for rows in order
    ]


def train_ours(config, batches, path) -> np.ndarray:
    """Loss and gradient norm before clipping of every step, (steps, 2); the initial weights are
    exported to `path`."""
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    task = GivenMasks(config) if config.task == "mae" else tasks.build(config)
    steps = step.build(task, config, mesh, Clock(BATCH, len(batches) * BATCH, len(batches)))
    found = []
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        huggingface_directory.write(path, jax.device_get(state.params), config)
        for batch in batches:
            rows = {"image": batch["image"], "label": batch["label"]}
            if config.task == "mae":
                rows["keep"] = np.argsort(batch["noise"])[:, : task.kept].astype(np.int32)
            state, metrics = steps.train(state, jax.device_put(rows, steps.batch_sharding))
            found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
    return np.array(found)


def train_theirs(torch, net, config, batches) -> np.ndarray:
    """The same of transformers' `net`."""
    options, mean, std = config.optim, config.data.mean, config.data.std
    net.train().requires_grad_(True)  # ViTMAE would keep its positions as they are
    groups = parameter_groups(config, net)
    optimizer = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_and_cosine(options, len(batches)))
    found = []
    for batch in batches:
        pixels = ((batch["image"] / 255.0 - mean) / std).astype(np.float32)
        inputs = {"pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())}
        if config.task == "mae":
            inputs["noise"] = torch.from_numpy(batch["noise"])
        else:
            inputs["labels"] = torch.from_numpy(batch["label"]).long()
        loss = net(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), options.clip)
        optimizer.step()
        rates.step()
        found.append([loss.item(), norm.item()])
    return np.array(found)


def parameter_groups(config, net) -> list[dict]:
    """Parameters by weight decay and rate, as public MAE's and BEiT's scripts have them: vectors,
    [CLS], positions and the mask token do not decay; the rate falls by layers, embeddings are
    layer 0 and what follows the last block has all of it."""
    groups = collections.defaultdict(list)
    depth = config.model.depth + 1
    for name, parameter in net.named_parameters():
        spared = parameter.ndim == 1 or re.search("token$|position_embeddings$|pos_embed$", name)
        block = re.search(r"^vit\.layers\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if ".embeddings." in name else depth
        decay = 0.0 if spared else config.optim.weight_decay
        groups[decay, config.optim.lr * config.optim.layer_decay ** (depth - layer)] += [parameter]
    return [
        {"params": parameters, "weight_decay": decay, "lr": rate}
        for (decay, rate), parameters in groups.items()
    ]


def warmup_and_cosine(options, total: int):
    """The rate after so many steps, over its peak."""
    end = options.lr_end / options.lr

    def factor(done: int) -> float:
        if done < WARMUP:
            return done / WARMUP
        return end + (1 - end) * (1 + math.cos(math.pi * (done - WARMUP) / (total - WARMUP))) / 2

    return factor


def assert_trains_alike(torch, config, path) -> None:
    """Losses are the same to 1e-5 and gradient norms to 1e-4, which leaves no room for another
    epsilon, decay or rate, nor for decaying [CLS] and positions alone."""
    import transformers

    batches = fixed_batches(config, config.train.steps)
    ours = train_ours(config, batches, path)
    kind = "ViTMAEForPreTraining" if config.task == "mae" else "ViTForImageClassification"
    net, said = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = train_theirs(torch, net, config, batches)
    (losses, norms), (loss, norm) = theirs.T, np.abs(ours / theirs - 1).max(axis=0)
    print(
        f"{config.task}: losses from {losses[0]:.4f} to {losses[-1]:.4f} differ by up to"
        f" {loss:.1e}, gradient norms by {norm:.1e}"
    )
    assert losses[-5:].mean() < losses[:5].mean() - 0.1
    assert norms.max() > config.optim.clip
    assert loss < 1e-5
    assert norm < 1e-4


def test_a_vit_t_from_scratch(torch, tmp_path):
    config = resolved("configs/cifar100.py:vit-t/4", 50, "optim.lr=1e-3")
    assert (config.model.width, config.model.depth, config.optim.weight_decay) == (192, 12, 0.3)
    assert_trains_alike(torch, config, tmp_path)


def test_layerwise_decay_of_the_rate(torch, tmp_path):
    small = ("model.width=48", "model.depth=4", "optim.layer_decay=0.65", "optim.lr=4e-3")
    config = resolved("configs/cifar100.py:vit-t/4", 50, *small)
    assert_trains_alike(torch, config, tmp_path)


def test_masked_autoencoding_with_the_same_masks(torch, tmp_path):
    small = ("model.width=96", "model.depth=4", "mae.decoder_width=48", "mae.decoder_depth=2")
    config = resolved("configs/cifar100_mae.py:vit-t/4", 20, *small, "optim.lr=1e-3")
    assert_trains_alike(torch, config, tmp_path)
