"""Files in the format of ADM's evaluator: read, written, and refused in one line."""

import hashlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.evals import reference, statistics
from pit_jax.evals.comparison import Collector, Description
from pit_jax.evals.statistics import Gaussian


def images(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 6, 3), np.uint8)


def adm_file(path, **arrays):
    """As numpy writes it, statistics of 5 and 3 dimensions unless told otherwise."""
    rng = np.random.default_rng(1)
    known = {
        "mu": rng.normal(size=5), "sigma": np.cov(rng.normal(size=(5, 20))),
        "mu_s": rng.normal(size=3), "sigma_s": np.cov(rng.normal(size=(3, 20))),
    }  # fmt: skip
    known |= arrays
    np.savez(path, **{name: x for name, x in known.items() if x is not None})
    return path


@pytest.mark.parametrize("compressed", [True, False])
def test_images_stream_in_order(tmp_path, compressed):
    path = tmp_path / "samples.npz"
    (np.savez_compressed if compressed else np.savez)(path, images(), np.arange(10))
    batches = list(reference.image_batches(path, 4))
    assert [len(b) for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), images())
    found = reference.read(path)
    assert found.images == (10, 4, 6, 3)
    assert found.description is None
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_images_are_never_in_memory_all_at_once(tmp_path):
    path, shape = tmp_path / "samples.npz", (64, 128, 128, 3)
    size = int(np.prod(shape))
    tracemalloc.start()
    reference.write_images(path, (np.zeros((4, *shape[1:]), np.uint8) for _ in range(16)), shape)
    assert reference.read(path).images == shape
    assert sum(len(b) for b in reference.image_batches(path, 4)) == 64
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > size
    assert most < 0.7 * size


def test_statistics_and_images_of_one_file(tmp_path):
    """The published files have statistics of the whole training set, and some images."""
    path = adm_file(tmp_path / "ref.npz", arr_0=images())
    found, arrays = reference.read(path), np.load(path)
    assert found.images == (10, 4, 6, 3)
    for name, gaussian in (("", found.description.pool), ("_s", found.description.spatial)):
        np.testing.assert_array_equal(gaussian.mean, arrays[f"mu{name}"])
        np.testing.assert_array_equal(gaussian.covariance, arrays[f"sigma{name}"])
        assert gaussian.mean.dtype == np.float64
    assert (found.description.features, found.description.count, found.provenance) == (None,) * 3


def test_files_of_pytorch_fid_have_no_spatial_statistics(tmp_path):
    path = adm_file(tmp_path / "ref.npz", mu_s=None, sigma_s=None)
    assert reference.read(path).description.spatial is None


def test_float32_and_columns_first_are_read(tmp_path):
    sigma = np.asfortranarray(np.arange(25.0).reshape(5, 5), np.float32)
    path = adm_file(tmp_path / "ref.npz", sigma=sigma)
    np.testing.assert_array_equal(reference.read(path).description.pool.covariance, sigma)


def test_what_we_write_is_read_by_us_and_by_numpy(tmp_path):
    rng = np.random.default_rng(0)
    collector = Collector(features=6)
    collector.add({"pool": rng.normal(size=(9, 5)), "spatial": rng.normal(size=(9, 3))})
    description, path = collector.description(), tmp_path / "new" / "ref.npz"
    reference.write_description(path, description, {"data": "digits", "images": 9})
    found = reference.read(path)
    assert found.provenance == {"data": "digits", "images": 9}
    assert found.description.count == 9
    np.testing.assert_array_equal(found.description.features, description.features)
    arrays = np.load(path)  # without allow_pickle, as ADM's evaluator does
    for name, gaussian in (("", description.pool), ("_s", description.spatial)):
        np.testing.assert_array_equal(arrays[f"mu{name}"], gaussian.mean)
        np.testing.assert_array_equal(arrays[f"sigma{name}"], gaussian.covariance)
    assert [p.name for p in path.parent.iterdir()] == ["ref.npz"]


def test_images_we_write_are_read_by_numpy_and_have_the_same_bytes_each_time(tmp_path):
    for name in ("a.npz", "b.npz"):
        parts = iter(np.split(images(), [4, 8]))
        reference.write_images(tmp_path / name, parts, images().shape, {"seed": 0})
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["arr_0"], images())
    assert reference.read(tmp_path / "a.npz").provenance == {"seed": 0}
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# What is refused ------------------------------------------------------------------------

OBJECTS = np.array([{}, 1], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"mu": None, "sigma": None},
            r"has neither images \(arr_0\) nor statistics \(mu, sigma\), but mu_s, sigma_s",
        ),
        ({"mu": None}, "has no mu, though it has what belongs to it"),
        ({"sigma": None}, "has no sigma, though it has what belongs to it"),
        ({"sigma_s": None}, "has no sigma_s, though"),
        ({"mu": np.zeros((5, 1))}, r"mu is float64 \(5, 1\), it should be float \(any\)"),
        ({"mu": np.arange(5)}, r"mu is int64 \(5,\), it should be float \(any\)"),
        ({"mu": OBJECTS}, r"mu is object \(2,\), it should be float"),
        ({"sigma": np.eye(4)}, r"sigma is float64 \(4, 4\), it should be float \(5, 5\)"),
        ({"sigma": np.full((5, 5), np.nan)}, "sigma is not finite"),
        ({"features": np.zeros((9, 4))}, r"features is .* it should be float \(any, 5\)"),
        ({"count": np.zeros(2, int)}, r"count is int64 \(2,\), it should be int \(\)"),
        ({"provenance": np.array("{")}, "provenance is not JSON"),
        ({"provenance": np.array("[1]")}, "provenance is JSON of a list, it should be an object"),
        ({"provenance": np.array("null")}, "provenance is JSON of a NoneType, it should be"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"arr_0 is float64 .*should be uint8 \(N, H, W, 3\)"),
        ({"arr_0": np.zeros((2, 4, 4, 1), np.uint8)}, r"arr_0 is uint8 \(2, 4, 4, 1\), images"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"arr_0 is uint8 \(0, 4, 4, 3\), images"),
    ],
    ids=str,
)
def test_other_files_are_refused_in_one_line(tmp_path, arrays, sentence):
    path = adm_file(tmp_path / "ref.npz", **arrays)
    with pytest.raises(ConfigError, match=sentence) as caught:
        reference.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_without_images_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.npz: No such file"):
        reference.read(tmp_path / "x.npz")
    path = adm_file(tmp_path / "ref.npz")
    with pytest.raises(ConfigError, match=r"has statistics but no images \(arr_0\)"):
        list(reference.image_batches(path, 4))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = adm_file(tmp_path / "ref.npz", arr_0=images())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(StorageError, match=r"is no intact \.npz file") as caught:
        reference.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match=r"is no intact \.npz file"):
        list(reference.image_batches(path, 4))


def test_no_single_changed_byte_goes_unnoticed_or_makes_a_traceback(tmp_path):
    """The checksum is of the data; of headers some bytes say nothing that is read."""
    path = adm_file(tmp_path / "ref.npz", arr_0=images())
    whole, before = path.read_bytes(), reference.read(path)
    places, noticed = range(0, len(whole), 11), []
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = reference.read(path)
            read = np.concatenate(list(reference.image_batches(path, 4)))
        except PitError as error:
            noticed.append(str(error))
            continue
        assert np.array_equal(read, images())
        pool = found.description.pool
        assert np.array_equal(pool.covariance, before.description.pool.covariance)
    assert not [line for line in noticed if "\n" in line]
    assert len(noticed) > 0.5 * len(places)


def test_an_array_shorter_than_its_header_is_refused(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, images())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue()[:-10])
    with pytest.raises(StorageError, match="an array ends 10 bytes too early"):
        list(reference.image_batches(tmp_path / "x.npz", 100))


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([images(4)], "4 images came, 10 were to be written"),
        ([images(12)], "12 images came, 10 were to be written"),
        ([images().astype(float)], "a batch of float64 .* does not belong to uint8 images"),
        ([images()[:, :2]], r"a batch of uint8 \(10, 2, 6, 3\) does not belong"),
    ],
)
def test_a_set_that_is_not_what_was_announced_is_not_written(tmp_path, batches, sentence):
    path = tmp_path / "samples.npz"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=sentence):
        reference.write_images(path, batches, (10, 4, 6, 3))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def batches():
        yield images(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference.write_images(tmp_path / "samples.npz", batches(), (10, 4, 6, 3))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    gaussian: Gaussian = statistics.of([np.eye(3)]).gaussian()
    with pytest.raises(StorageError, match="could not be written: File exists"):
        reference.write_description(tmp_path / "file" / "ref.npz", Description(gaussian))
