"""Against the pytorch-fid package: Inception's outputs on random weights, and the distance."""

import importlib
import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

from pit_jax.evals import statistics
from pit_jax.evals.frechet import frechet_distance
from pit_jax.models.inception import Inception
from pit_jax.weights import inception as weights

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    reason = "PyTorch is not installed: pip install 'pit_jax[parity]'"
    found = pytest.importorskip("torch", reason=reason)
    apart = pathlib.Path(sys.prefix, "pytorch-fid")  # see the Makefile
    sys.path.append(str(apart))
    if importlib.util.find_spec("pytorch_fid") is None:
        sys.path.remove(str(apart))
        pytest.skip("pytorch-fid is not installed: make parity does it")
    declared = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # it is built for another kind of PyTorch
        # Without its compiled operations it misses two at once, which nothing here calls.
        declared = found.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    yield found
    sys.path.remove(str(apart))
    for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "pytorch_fid")]:
        del sys.modules[name]
    del declared


def images(side: int = 40, count: int = 2) -> np.ndarray:
    """Smooth, and different in every corner."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3))
    return np.kron(coarse, np.ones((1, side // 5, side // 5, 1))).astype(np.uint8)


def randomise(torch, network) -> None:
    """Weights and batch norms under which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)

    def uniform(x, low: float, high: float) -> None:
        x.copy_(low + (high - low) * torch.rand(x.shape, generator=generator))

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                fan_in = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * (2 / fan_in) ** 0.5)
            if isinstance(module, torch.nn.BatchNorm2d):
                uniform(module.weight, 0.7, 1.3)
                uniform(module.bias, -0.1, 0.2)
                uniform(module.running_mean, -0.1, 0.1)
                uniform(module.running_var, 0.5, 1.5)
        uniform(network.fc.bias, -1, 1)


@pytest.fixture(scope="module")
def theirs(torch):
    """pytorch-fid's network with random weights, its outputs, and the same weights here."""
    package = importlib.import_module("pytorch_fid.inception")
    stored = {}

    def no_download(*_arguments, **_options):
        return stored

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "load_state_dict_from_url", no_download)
        load = torch.nn.Module.load_state_dict
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        network = package.fid_inception_v3().eval()
        patch.setattr(torch.nn.Module, "load_state_dict", load)
        randomise(torch, network)
        stored.update(network.state_dict())
        blocks = package.InceptionV3().eval()  # resizes and scales, and loads what is stored
    spatial = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[-1]))
    x = torch.from_numpy(images()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        (pool,) = blocks(x / 255)
        resized = torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear")
        logits = network(2 * resized - 1)
    hook.remove()
    out = {
        "pool": pool[:, :, 0, 0],
        "spatial": spatial[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1),
        "logits": logits,
        "probabilities": torch.softmax(logits - network.fc.bias, -1),
    }
    params = weights.convert({name: x.numpy() for name, x in stored.items()})
    return {name: x.detach().numpy() for name, x in out.items()}, params


@pytest.fixture(scope="module")
def ours(theirs):
    run = jax.jit(Inception("pytorch").apply)
    return jax.device_get(run({"params": theirs[1]}, images()))


@pytest.mark.parametrize("name", ["pool", "spatial", "logits", "probabilities"])
def test_same_weights_say_the_same_as_in_pytorch_fid(theirs, ours, name):
    expected = theirs[0][name]
    assert expected.std() > 1e-4  # the weights do something
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * expected.std()  # and images differ
    np.testing.assert_allclose(ours[name], expected, atol=1e-4 * np.abs(expected).max())


def test_same_frechet_distance(torch):
    score = importlib.import_module("pytorch_fid.fid_score")
    rng = np.random.default_rng(0)
    a, b = (
        statistics.of([rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) + shift]).gaussian()
        for shift in (0.0, 0.5)
    )
    expected = score.calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
