"""Rendered scenes: depths by closed form, and the way of a depth through the data."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from pit_jax import validation
from pit_jax.data import pipeline, sources
from pit_jax.data.augmentation import augment, augment_depth
from pit_jax.data.resize import center_view
from pit_jax.data.scenes import FAR, Box, Scene, Sphere, draw, render
from pit_jax.errors import ConfigError

GREY = np.full(3, 0.5)
HEIGHT = 1.5


def scene(*objects, pitch: float = 0.0, light=(0.0, 1.0, 0.0)) -> Scene:
    tiles = np.stack([GREY, GREY])
    return Scene(objects, HEIGHT, pitch, 1.0, np.array(light), tiles, 1.0, 0.0, np.ones(3))


def level(away: float) -> np.ndarray:
    """A place on the optical axis of a camera that looks straight ahead."""
    return np.array([0.0, HEIGHT, away])


def test_a_sphere_straight_ahead_is_its_radius_nearer_than_its_centre():
    _, depth = render(scene(Sphere(level(5.0), 0.7, GREY)), 33)  # odd: a pixel on the axis
    assert depth[16, 16] == pytest.approx(5 - 0.7, rel=1e-6)


def test_depth_is_along_the_optical_axis_and_not_along_the_ray():
    """A wall that stands square to the axis has one depth, however far its corners are."""
    _, depth = render(scene(Box(level(5.0), np.array([9.0, 9.0, 1.0]), 0.0, GREY)), 16)
    # The floor is nearer where a ray falls more steeply than HEIGHT in 4 m.
    down = (np.arange(16) + 0.5) / 16 - 0.5
    wall = down * 4 < HEIGHT
    np.testing.assert_allclose(depth[wall], 4.0, rtol=1e-6)
    np.testing.assert_allclose(depth[~wall], (HEIGHT / down[~wall])[:, None] * np.ones(16), 1e-6)


@pytest.mark.parametrize("pitch", [0.0, 0.3])
def test_the_floor_has_the_depth_of_its_plane_and_the_sky_none(pitch):
    _, depth = render(scene(pitch=pitch), 24)
    v = ((np.arange(24) + 0.5) / 24 - 0.5)[:, None] * np.ones(24)
    falls = v * np.cos(pitch) + np.sin(pitch)  # of a ray, per metre along the axis
    with np.errstate(divide="ignore"):
        wanted = np.where(falls > 0, HEIGHT / falls, np.inf)
    np.testing.assert_allclose(depth, np.where(wanted <= FAR, wanted, 0), rtol=1e-6)
    assert (depth == 0).any()
    assert (depth > 0).any()


def test_a_turned_box_and_a_sphere_beside_the_axis_by_marching_along_rays():
    """An independent look: the first of many small steps along each ray that is inside."""
    ball = Sphere(np.array([-0.6, 1.2, 4.0]), 0.8, GREY)
    box = Box(np.array([0.7, 1.0, 3.5]), np.array([0.5, 1.0, 0.3]), 0.6, GREY)
    size, pitch, step = 12, 0.15, 2e-3
    _, depth = render(scene(ball, box, pitch=pitch), size)
    t = np.arange(0.5, FAR, step)
    for row in range(size):
        for column in range(size):
            x, down = (np.array([column, row]) + 0.5) / size - 0.5
            up = -down * np.cos(pitch) - np.sin(pitch)
            away = np.cos(pitch) - down * np.sin(pitch)
            at = np.array([0, HEIGHT, 0]) + t[:, None] * np.array([x, up, away])
            inside = at[:, 1] < 0
            inside |= ((at - ball.centre) ** 2).sum(1) < ball.radius**2
            # box: along its own sides, which are the world's turned by yaw
            along = at - box.centre
            c, s = np.cos(box.yaw), np.sin(box.yaw)
            own = np.stack([c * along[:, 0] - s * along[:, 2], along[:, 1]], 1)
            own = np.column_stack([own, s * along[:, 0] + c * along[:, 2]])
            inside |= (np.abs(own) < box.half).all(1)
            wanted = t[inside.argmax()] if inside.any() else 0.0
            assert depth[row, column] == pytest.approx(wanted, abs=2 * step)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_nearer_hides_what_is_behind_it(order):
    red, green = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    things = [Sphere(level(3.0), 0.2, red), Box(level(6.0), np.array([2.0, 1.0, 1.0]), 0.0, green)]
    image, depth = render(scene(*things[::order]), 33)
    assert depth[16, 16] == pytest.approx(2.8, rel=1e-6)
    assert image[16, 16, 0] > 0
    assert image[16, 16, 1] == 0
    assert depth[16, 21] == pytest.approx(5.0, rel=1e-6)
    assert image[16, 21, 0] == 0


def test_shadows_fall_away_from_the_light():
    """A sphere's shadow on the floor is where the light, the sphere and the floor say."""
    ball = Sphere(np.array([0.0, 1.0, 5.0]), 0.5, GREY)
    light = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # from the right: the shadow is at x = −1
    image, depth = render(scene(ball, light=light, pitch=0.3), 65)
    down = (np.arange(65) + 0.5) / 65 - 0.5

    def brightness(x: float, away: float) -> int:
        """Of the pixel that sees (x, 0, away) of the floor."""
        c, s = np.cos(0.3), np.sin(0.3)
        along, below = away * c + HEIGHT * s, HEIGHT * c - away * s
        row = np.abs(down - below / along).argmin()
        column = np.abs(down - x / along).argmin()
        assert depth[row, column] == pytest.approx(along, rel=0.1)  # it is the floor
        return int(image[row, column, 0])

    assert brightness(-1.0, 5.0) < 0.7 * brightness(1.0, 5.0)
    assert brightness(1.0, 5.0) == brightness(1.0, 4.0)


def test_scenes_are_the_same_at_every_size_and_different_from_each_other(tiny):
    tiny.data.update(name="scenes", image_size=12, channels=3)
    train, test = (sources.load(tiny.data, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (512, 128)
    for one, again in zip(train[7], sources.load(tiny.data, "train")[7], strict=True):
        np.testing.assert_array_equal(one, again)
    assert not np.array_equal(train[7][0], train[8][0])
    assert not np.array_equal(train[7][0], test[7][0])
    tiny.data.image_size = 36  # three times as fine: the middle of each 3 × 3 is the pixel
    np.testing.assert_allclose(sources.load(tiny.data, "train")[7][2][1::3, 1::3], train[7][2])
    with pytest.raises(ConfigError, match="scenes has the splits train and test, not 'val'"):
        sources.load(tiny.data, "val")


def test_random_scenes_are_what_their_docstring_says():
    for seed in range(50):
        found = draw(np.random.default_rng(seed))
        assert 1 <= len(found.objects) <= 4
        for thing in found.objects:
            bottom = thing.half[1] if isinstance(thing, Box) else thing.radius
            assert thing.centre[1] == bottom  # it stands on the floor
            assert 2 <= thing.centre[2] <= 8
        assert np.linalg.norm(found.light) == pytest.approx(1)


@pytest.mark.parametrize("held", [True, False])
def test_batches_hold_the_depth_of_their_images(tiny, one_device, held):
    tiny.data.update(name="scenes", image_size=8, channels=3)
    tiny.data.in_memory_gb = 4.0 if held else 0.0
    source = sources.Part(sources.load(tiny.data, "test"), range(5))
    assert source.has_depth
    reader = pipeline.Reader(source, tiny.data, train=True, seed=1)
    assert reader.held == held
    rows = np.arange(3)
    batch = pipeline.TrainBatches(reader, 0, 3, rows)[2]
    assert set(batch) == {"image", "label", "index", "depth", "corrupt"}
    assert batch["depth"].shape == (3, 8, 8)
    assert batch["depth"].dtype == np.float32
    every = [source[i] for i in range(5)]
    for image, depth in zip(batch["image"], batch["depth"], strict=True):
        (own,) = [d for i, _, d in every if np.array_equal(i, image)]
        np.testing.assert_array_equal(own, depth)
    last = pipeline.EvalBatches(reader, 3, rows)[1]
    np.testing.assert_array_equal(last["mask"], [1, 1, 0])
    np.testing.assert_array_equal(last["depth"][:2], [every[3][2], every[4][2]])


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_augmentation_moves_depths_as_it_moves_images(tiny, crop):
    options = tiny.data.augmentation
    options.update(crop=crop, pad=3, flip=0.5)
    levels = np.random.default_rng(0).integers(1, 256, (16, 9, 9, 1), dtype=np.uint8)
    key = jax.random.key(3)
    images, _ = augment(levels, np.zeros(16, np.int32), key, options, (0.0,), (1 / 255,), 2)
    depths = augment_depth(levels[..., 0].astype(np.float32) / 32, key, options)
    np.testing.assert_allclose(depths, np.asarray(images)[..., 0] / 32, rtol=1e-6)
    moved = [not np.array_equal(d, x[..., 0] / 32) for d, x in zip(depths, levels, strict=True)]
    assert any(moved)
    assert (np.asarray(depths) == 0).any() == (crop == "pad")


def test_a_smaller_view_takes_single_depths_and_mixes_none():
    values = np.arange(48.0).reshape(6, 8)
    view = center_view((6, 8), 3)  # to 3 × 4, and the middle 3 columns, from the left
    np.testing.assert_array_equal(view.nearest(values), values[1::2, 1::2][:, :3])
    np.testing.assert_array_equal(center_view((6, 6), 6).nearest(values[:, :6]), values[:, :6])
    large = center_view((2, 2), 4).nearest(values[:2, :2])
    np.testing.assert_array_equal(large, values[:2, :2].repeat(2, 0).repeat(2, 1))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.fixture
def nyu(tmp_path):
    """A set laid out as TensorFlow Datasets writes nyu_depth_v2, of five images of 12 × 16."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

    folder = tmp_path / "nyu_depth_v2" / "0.0.1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)
    depths = rng.uniform(0, 10, (5, 12, 16)).astype(np.float16)
    writer = ArrayRecordWriter(
        str(folder / "nyu_depth_v2-validation.array_record-00000-of-00001"), "group_size:1"
    )
    for image, depth in zip(images, depths, strict=True):
        example = protos.Example()
        example.features.feature["image"].bytes_list.value.append(png(image))
        example.features.feature["depth"].float_list.value.extend(depth.astype(float).ravel())
        writer.write(example.SerializeToString())
    writer.close()
    prefix = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "shape": {"dimensions": ["12", "16", "3"]}, "encodingFormat": "png"}
    depth = {"dtype": "float16", "shape": {"dimensions": ["12", "16"]}, "encoding": "none"}
    features = {
        "image": {"image": image, "pythonClassName": f"{prefix}.image_feature.Image"},
        "depth": {"tensor": depth, "pythonClassName": f"{prefix}.tensor_feature.Tensor"},
    }
    top = f"{prefix}.features_dict.FeaturesDict"
    content = {"featuresDict": {"features": features}, "pythonClassName": top}
    (folder / "features.json").write_text(json.dumps(content))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "validation", "numBytes": "1", "shardLengths": ["5"]}
    info = {
        "fileFormat": "array_record",
        "moduleName": "nyu",
        "name": "nyu_depth_v2",
        "splits": [split | {"filepathTemplate": template}],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "depth"}]}},
        "version": "0.0.1",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path, images, depths


def test_a_prepared_set_gives_its_depths(tiny, nyu):
    folder, images, depths = nyu
    tiny.task, tiny.eval.what = "depth", ("depth",)
    tiny.data.update(name="nyu_depth_v2", dir=str(folder), channels=3, image_size=12)
    tiny.data.eval_split = "validation"
    config = validation.resolve(tiny)
    source = sources.load(config.data, "validation")
    assert source.has_depth
    assert source.native_shape == (12, 16)
    image, label, depth = source[3]
    np.testing.assert_array_equal(image, images[3])
    np.testing.assert_array_equal(depth, depths[3].astype(np.float32))
    assert (label, depth.dtype) == (0, np.float32)
    np.testing.assert_array_equal(source.labels(), np.zeros(5))
    batch = pipeline.Reader(source, config.data, train=False)(np.arange(5), np.arange(5))
    np.testing.assert_array_equal(batch["image"], images[:, :, 2:14])
    np.testing.assert_array_equal(batch["depth"], depths[:, :, 2:14].astype(np.float32))
