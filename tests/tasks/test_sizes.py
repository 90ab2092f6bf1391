"""Patch size against input size: the paper's two families of models, on resized digits."""

import jax
import numpy as np
import pytest

from pit_jax import step, tasks, validation
from pit_jax.data import pipeline, sources
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes


@pytest.mark.parametrize(
    ("size", "patch", "tokens"),
    [(4, 1, 16), (16, 4, 16), (8, 4, 4)],  # as long a sequence; as large an image
)
def test_any_patch_trains_on_any_size(tiny, one_device, size, patch, tokens):
    tiny.data.image_size = size
    tiny.model.update(patch=patch, depth=1)
    tiny.data.permutation.swaps = size**2 // 2
    config = validation.resolve(tiny)
    source = sources.load(config.data, "train")
    mesh = meshes.make_mesh(config.mesh, one_device)
    task = tasks.build(pipeline.device_config(config, source))
    assert task.flops().tokens == tokens + 1
    steps = step.build(task, config, mesh, Clock(32, len(source), 10))
    reader = pipeline.Reader(source, config.data, train=True)
    batches = pipeline.Pipeline(reader, steps.batch_sharding, 32, workers=0).train(0, 0)
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        before = np.asarray(state.params["embed"]["patch"]["kernel"])
        assert before.shape == (patch**2, 16)
        batch = next(batches)
        assert batch["image"].shape == (32, size, size, 1)
        state, metrics = steps.train(state, batch)
    batches.close()
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(state.params["embed"]["patch"]["kernel"], before)


def test_the_family_of_equal_length_has_equal_costs_but_for_the_patches(tiny):
    def cost(size: int, patch: int) -> float:
        tiny.data.image_size, tiny.model.patch = size, patch
        return tasks.build(validation.resolve(tiny)).flops().forward

    assert cost(4, 1) == cost(8, 2) == cost(16, 4) < cost(8, 1)
