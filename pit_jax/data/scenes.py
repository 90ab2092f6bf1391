"""Rendered scenes with exact depth: spheres and boxes on a chequered floor, under a random light.

A stand-in for photographs with measured depth, made here and always at hand. A scene is a
function of (split, number) alone, at whatever size it is rendered.

World coordinates are metres: x to the right, y up from the floor, z away from the camera, which
stands at (0, height, 0). Depth is the distance along the camera's optical axis, as depth
cameras and NYU-v2 give it, not along the ray. Depth 0 means that there is none: the sky, and
whatever is more than `FAR` away.
"""

import dataclasses
from typing import Any

import numpy as np

from pit_jax.data.known import KNOWN
from pit_jax.data.sources import Source
from pit_jax.errors import ConfigError

FAR = 10.0  # metres; the floor ends there, as NYU-v2's depth camera does
_NEAR = 1e-6
_AMBIENT = 0.35
_SAMPLES = 2  # colours are means of 2 × 2 rays a pixel; depth is that of the pixel's centre
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Sphere:
    """Centre (3,) and radius in metres; colour (3,) in [0, 1]."""

    centre: np.ndarray
    radius: float
    colour: np.ndarray

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """(R,): where origin + t · ray first meets the sphere, inf where it never does.

        Args:
          origin: (3,), or (R, 3) with one for each ray.
          rays: (R, 3), of any length.
        """
        to = origin - self.centre
        a, b = (rays * rays).sum(-1), (rays * to).sum(-1)
        root = b * b - a * ((to * to).sum(-1) - self.radius**2)
        distance = np.sqrt(np.maximum(root, 0))
        near, far = (-b - distance) / a, (-b + distance) / a
        t = np.where(near > _NEAR, near, far)
        return np.where((root > 0) & (t > _NEAR), t, np.inf)

    def normal(self, points: np.ndarray) -> np.ndarray:
        """(R, 3) unit vectors outwards at points (R, 3) of the surface."""
        return (points - self.centre) / self.radius


@dataclasses.dataclass(frozen=True)
class Box:
    """Centre (3,) and half sides (3,) in metres, turned by `yaw` radians about the vertical."""

    centre: np.ndarray
    half: np.ndarray
    yaw: float
    colour: np.ndarray

    def _turn(self) -> np.ndarray:
        """(3, 3): from world to box."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """As `Sphere.hit`, by the slab method (Kay and Kajiya 1986)."""
        turn = self._turn()
        start, along = (origin - self.centre) @ turn.T, rays @ turn.T
        along = np.where(along == 0, 1e-30, along)  # parallel to a side: meets it at infinity
        first, second = (-self.half - start) / along, (self.half - start) / along
        enter = np.minimum(first, second).max(-1)
        leave = np.maximum(first, second).min(-1)
        t = np.where(enter > _NEAR, enter, leave)
        return np.where((leave >= enter) & (t > _NEAR), t, np.inf)

    def normal(self, points: np.ndarray) -> np.ndarray:
        """As `Sphere.normal`: of the side that is nearest."""
        turn = self._turn()
        inside = (points - self.centre) @ turn.T / self.half  # (R, 3), one coordinate is ±1
        axis = np.abs(inside).argmax(-1)
        normal = np.eye(3)[axis] * np.sign(np.take_along_axis(inside, axis[:, None], -1))
        return normal @ turn


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is rendered.

    Attributes:
      objects: spheres and boxes.
      height: of the camera above the floor, metres.
      pitch: by how much it looks down, radians.
      focal: focal length in sides of the image.
      light: (3,) unit vector towards it; it is infinitely far away.
      floor: (2, 3) colours of its tiles, in [0, 1].
      tile: side of a tile, metres.
      turn: of the tiles about the vertical, radians.
      sky: (3,) colour.
    """

    objects: tuple[Sphere | Box, ...]
    height: float
    pitch: float
    focal: float
    light: np.ndarray
    floor: np.ndarray
    tile: float
    turn: float
    sky: np.ndarray


def draw(generator: np.random.Generator) -> Scene:
    """A random scene: one to four objects that stand on the floor, 2 to 8 m away."""
    g = generator

    def thing() -> Sphere | Box:
        away = g.uniform(2.0, 8.0)
        x, colour = g.uniform(-0.4, 0.4) * away, g.uniform(0.15, 1.0, 3)
        if g.random() < 0.5:
            radius = g.uniform(0.25, 0.9)
            return Sphere(np.array([x, radius, away]), radius, colour)
        half = g.uniform(0.2, 0.8, 3)
        return Box(np.array([x, half[1], away]), half, g.uniform(0, np.pi), colour)

    objects = tuple(thing() for _ in range(g.integers(1, 5)))
    azimuth, elevation = g.uniform(0, 2 * np.pi), g.uniform(0.5, 1.3)
    across = np.cos(elevation)
    return Scene(
        objects=objects,
        height=g.uniform(0.8, 2.0),
        pitch=g.uniform(0.05, 0.35),
        focal=g.uniform(0.8, 1.2),  # an angle of view of 64° to 45°
        light=np.array([across * np.cos(azimuth), np.sin(elevation), across * np.sin(azimuth)]),
        floor=np.stack([g.uniform(0.0, 0.5, 3), g.uniform(0.5, 1.0, 3)]),
        tile=g.uniform(0.4, 1.0),
        turn=g.uniform(0, np.pi),
        sky=g.uniform(0.6, 1.0, 3),
    )


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image (size, size, 3) uint8 and its depth (size, size) float32, metres."""
    origin = np.array([0.0, scene.height, 0.0])
    depth, _ = _nearest(scene, origin, _rays(scene, size))
    depth = np.where(depth <= FAR, depth, 0.0).reshape(size, size)
    fine = _colours(scene, origin, _rays(scene, _SAMPLES * size))
    fine = fine.reshape(size, _SAMPLES, size, _SAMPLES, 3).mean((1, 3))
    return np.round(255 * fine).astype(np.uint8), depth.astype(np.float32)


def _rays(scene: Scene, size: int) -> np.ndarray:
    """(size², 3): through the centres of pixels, of length 1 along the optical axis, so that
    what they meet at t has depth t."""
    at = ((np.arange(size) + 0.5) / size - 0.5) / scene.focal
    x, down = np.meshgrid(at, at)
    c, s = np.cos(scene.pitch), np.sin(scene.pitch)
    return np.stack([x, -c * down - s, c - s * down], -1).reshape(-1, 3)


def _nearest(scene: Scene, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each ray first meets something, (R,), inf if nowhere, and what: the number of an
    object, or len(objects) for the floor."""
    falls = np.where(rays[:, 1] < 0, rays[:, 1], -1e-30)
    floor = np.broadcast_to(origin, rays.shape)[:, 1] / -falls
    hits = [thing.hit(origin, rays) for thing in scene.objects]
    every = np.stack([*hits, np.where(rays[:, 1] < 0, floor, np.inf)])
    which = every.argmin(0)
    return np.take_along_axis(every, which[None], 0)[0], which


def _colours(scene: Scene, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(R, 3) in [0, 1]: Lambert's law, with shadows and some light from everywhere."""
    t, which = _nearest(scene, origin, rays)
    seen = t <= FAR
    points = origin + np.where(seen, t, 0.0)[:, None] * rays
    c, s = np.cos(scene.turn), np.sin(scene.turn)
    along, across = points[:, 0] * c + points[:, 2] * s, points[:, 2] * c - points[:, 0] * s
    odd = (np.floor(along / scene.tile) + np.floor(across / scene.tile)).astype(int) % 2
    colour, normal = scene.floor[odd], np.tile([0.0, 1.0, 0.0], (len(rays), 1))
    for number, thing in enumerate(scene.objects):
        mine = which == number
        colour[mine], normal[mine] = thing.colour, thing.normal(points[mine])
    toward = np.tile(scene.light, (len(rays), 1))
    start = points + 1e-4 * normal  # off its own surface
    lit = np.ones(len(rays), bool)
    for thing in scene.objects:
        lit &= np.isinf(thing.hit(start, toward))
    lambert = np.clip(normal @ scene.light, 0, 1) * lit
    colour = colour * (_AMBIENT + (1 - _AMBIENT) * lambert)[:, None]
    return np.where(seen[:, None], colour, scene.sky)


class Scenes(Source):
    """Examples are (image, 0, depth), rendered at the model's size; 512 train, 128 test."""

    has_depth = True

    def __init__(self, data: Any, split: str):
        super().__init__()
        splits = KNOWN["scenes"].splits
        if split not in splits:
            raise ConfigError(f"scenes has the splits {' and '.join(splits)}, not {split!r}")
        self.name = f"scenes/{split}"
        self.native_shape = (data.image_size, data.image_size)
        self._stream, self._count = list(splits).index(split), splits[split]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        generator = np.random.default_rng((_SEED, self._stream, index))
        image, depth = render(draw(generator), self.native_shape[0])
        return image, 0, depth

    def labels(self) -> np.ndarray:
        """All zero: scenes have no classes."""
        return np.zeros(len(self), np.int64)
