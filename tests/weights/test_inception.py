"""The public Inception file: read without PyTorch, checked, and its batch norm folded away."""

import collections
import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest

from pit_jax.errors import ConfigError, StorageError
from pit_jax.weights import inception, tensors, torch_file

SMALL = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.num_batches_tracked": np.array(7, np.int64),
}


def public_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Zeros of the public file's names and shapes, and one random convolution."""
    found = {}
    for path, (height, width, inputs, outputs) in inception._convolutions().items():
        name = path.replace("/", ".")
        found[f"{name}.conv.weight"] = np.zeros((outputs, inputs, height, width), np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = np.ones(outputs, np.float32)
        found[f"{name}.bn.num_batches_tracked"] = np.array(1)
    found["fc.weight"] = np.zeros((1008, 2048), np.float32)
    found["fc.bias"] = np.arange(1008, dtype=np.float32)
    rng = np.random.default_rng(seed)
    for name, x in found.items():
        if name.startswith("Mixed_6b.branch7x7_2."):
            found[name] = rng.uniform(0.5, 2, x.shape).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def public() -> dict[str, np.ndarray]:
    return public_tensors()


class Call:
    """Unpickled by whoever allows it, it calls a function."""

    def __init__(self, function, *arguments):
        self.made_of = function, arguments

    def __reduce__(self):
        return self.made_of


def test_there_are_as_many_tensors_as_in_the_public_file(public):
    """94 convolutions with batch norm, and the classifier."""
    assert len([n for n in public if n.endswith("conv.weight")]) == 94
    assert public["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert public["Mixed_6d.branch7x7_2.conv.weight"].shape == (160, 160, 1, 7)
    assert public["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    # Keras counts 21,802,784 without the classifier: kernels, and three numbers a channel.
    kernels = sum(x.size for n, x in public.items() if n.endswith("conv.weight"))
    channels = sum(x.size for n, x in public.items() if n.endswith("bn.bias"))
    assert kernels + 3 * channels == 21_802_784


def test_batch_norm_is_folded_into_the_convolution(public):
    """Convolution then batch norm, in float64 at one pixel, is the folded convolution."""
    params = inception.convert(public)
    name = "Mixed_6b.branch7x7_2"
    weight = public[f"{name}.conv.weight"].astype(np.float64)  # (out, in, 1, 7)
    gamma, beta, mean, variance = (
        public[f"{name}.bn.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    patch = np.random.default_rng(1).normal(size=weight.shape[1:])  # (in, 1, 7)
    raw = np.tensordot(weight, patch, 3)
    expected = (raw - mean) / np.sqrt(variance + 0.001) * gamma + beta
    folded = params["Mixed_6b"]["branch7x7_2"]
    assert folded["kernel"].shape == (1, 7, 128, 128)
    found = np.tensordot(patch.transpose(1, 2, 0), folded["kernel"], 3) + folded["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(params["fc_bias"], public["fc.bias"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"Mixed_5b.branch1x1.bn.bias": None}, r"has no Mixed_5b\.branch1x1\.bn\.bias: only"),
        ({"fc.weight": np.zeros((1000, 2048))}, r"fc\.weight has shape \(1000, 2048\), .*\(1008"),
        ({"AuxLogits.conv0.conv.weight": np.zeros(3)}, r"1 tensor\(s\) too many: AuxLogits"),
    ],
    ids=["missing", "torchvision's classes", "too many"],
)
def test_other_networks_are_refused(public, change, sentence):
    changed = {k: v for k, v in (public | change).items() if v is not None}
    with pytest.raises(ConfigError, match=sentence) as caught:
        inception.convert(changed)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_of_the_same_names_is_read(public, tmp_path):
    path = tmp_path / "inception.safetensors"
    tensors.write(path, public)
    loaded = inception.load(path)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = tensors.flatten(inception.convert(public))
    for name, value in tensors.flatten(loaded.params).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_missing_file_names_the_public_one(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*pt_inception-2015-12-05-6726825d\.pth"):
        inception.load(tmp_path / "x.pth")


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    path = tmp_path / inception.PUBLIC_FILE
    path.write_bytes(b"half of it")
    with pytest.raises(StorageError, match=r"SHA-256 begins with .*, not 6726825d: fetch it again"):
        inception.load(path)


# The file format ------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_calls_a_function_is_refused_and_not_run(tmp_path, legacy):
    target = tmp_path / "written"
    evil = pickle.dumps({"x": Call(open, str(target), "w")}, protocol=2)
    if legacy:
        head = [torch_file._MAGIC, 1001, {"little_endian": True}]
        content = b"".join(pickle.dumps(x, protocol=2) for x in head) + evil
    else:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
        content = file.getvalue()
    with pytest.raises(ConfigError, match=r"x\.pth: its pickle asks for (_io|io)\.open"):
        torch_file.tensors(content, "x.pth")
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps(3), b"\x80\x02]q\x00."])
def test_what_is_no_torch_file_is_refused(content):
    with pytest.raises(StorageError, match=r"x\.pth is no intact PyTorch file"):
        torch_file.tensors(content, "x.pth")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def saved(torch, thing, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_saves_is_read(torch, legacy):
    state = collections.OrderedDict((k, torch.from_numpy(v.copy())) for k, v in SMALL.items())
    state["view"] = torch.arange(24.0).reshape(4, 6)[1:, ::2].T  # of a larger storage
    state["scalar"] = torch.tensor(2.5, dtype=torch.float64)
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2))
    state._metadata = {"": {"version": 1}}
    content = saved(torch, state, legacy)
    found = torch_file.tensors(content, "x.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        expected = value.detach().numpy()
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    for keep in (len(content) // 2, len(content) - 30):
        with pytest.raises(StorageError, match="no intact PyTorch file"):
            torch_file.tensors(content[:keep], "x.pth")


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
def test_a_whole_module_and_a_list_are_refused(torch, legacy):
    content = saved(torch, torch.nn.Linear(2, 2), legacy)
    with pytest.raises(ConfigError, match=r"asks for .*, which is not read: save the state_dict"):
        torch_file.tensors(content, "x.pth")
    with pytest.raises(ConfigError, match="holds no dict of tensors"):
        torch_file.tensors(saved(torch, [torch.ones(2)], legacy), "x.pth")
