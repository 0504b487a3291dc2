"""Draws the miniature's samples: 20 classes of textured toys on textured grounds.

Each class has its own silhouette, texture and colours, the grounds the same textures in muted
colours; pose, size, hue and light vary, and a void border surrounds every object as in VOC. A small
network learns them on a CPU within minutes; colour alone is not enough.
"""

import colorsys
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1  # of the drawing: raise it whenever a pixel of any sample changes
SPLITS = ('train', 'val')
VOID = 255
SUPERSAMPLING = 3  # in both directions, for smooth outlines

Array = np.ndarray


# --- the toys: silhouettes in a frame of about [-1, 1], x to the right, y downwards ---------------


def _poly(*xy: float) -> Array:
    return np.array(xy, dtype=float).reshape(-1, 2)


def _box(x0: float, y0: float, x1: float, y1: float) -> Array:
    return _poly(x0, y0, x1, y0, x1, y1, x0, y1)


def _disc(x: float, y: float, rx: float, ry: float | None = None) -> Array:
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + (ry or rx) * np.sin(t)], axis=1)


class _Toy(NamedTuple):
    texture: str
    colours: str  # hex: the texture's two colours, then the trim's
    body: list[Array]  # carries the texture
    trim: list[Array]  # windows, wheels, ears: one colour, over the body


# fmt: off
_TOYS = {  # in VOC's order: the n-th toy has index n in the masks, the ground 0
    'aeroplane': _Toy('bands', 'f2f4f8 2a62d8 1b2f66',
        [_disc(0, 0, 1.1, .3), _poly(.4, 0, -.3, -1.1, -.75, -1.1, -.3, 0, -.75, 1.1, -.3, 1.1),
         _poly(-.6, 0, -1.25, -.55, -1.25, .55)], [_disc(.75, 0, .22, .16)]),
    'bicycle': _Toy('checks', '1fd6c0 0a5a5e e9f7a0',
        [_disc(-.62, .3, .56), _disc(.62, .3, .56), _poly(-.6, .3, -.35, -.6, .5, -.6, .6, .3)],
        [_disc(-.62, .3, .22), _disc(.62, .3, .22), _box(-.6, -.8, 0, -.5)]),
    'bird': _Toy('scales', 'ffdd3c f08c00 d8371f',
        [_disc(0, .15, .85, .55), _disc(.62, -.4, .42),
         _poly(-.5, -.1, -1.3, -.4, -1.2, .4, -.5, .5)],
        [_poly(.95, -.6, 1.4, -.4, .95, -.2), _disc(-.15, .15, .4, .2)]),
    'boat': _Toy('bricks', 'a8482a 5e1f14 fff3d6', [_poly(-1.2, .2, 1.2, .2, .75, .95, -.75, .95)],
        [_poly(-.08, -1.25, 1, .25, -.08, .25), _poly(-.15, -.9, -.15, .25, -.85, .25)]),
    'bottle': _Toy('marble', '12a04a 8af0b0 f7f1d5',
        [_box(-.45, -.35, .45, 1.15), _box(-.2, -1.2, .2, 0), _disc(0, -.35, .45, .3)],
        [_box(-.45, .2, .45, .65), _box(-.24, -1.25, .24, -1)]),
    'bus': _Toy('plain', 'd4141e ff5a48 20304a', [_box(-1.2, -.7, 1.2, .6)],
        [_box(-1.05, -.5, -.45, -.05), _box(-.3, -.5, .3, -.05), _box(.45, -.5, 1.05, -.05),
         _disc(-.65, .6, .26), _disc(.65, .6, .26)]),
    'car': _Toy('plain', 'e0218a ff8fd0 2b2433',
        [_box(-1.2, -.1, 1.2, .5), _poly(-.8, 0, -.5, -.65, .45, -.65, .9, 0)],
        [_poly(-.5, -.1, -.35, -.5, .3, -.5, .55, -.1), _disc(-.65, .5, .3), _disc(.65, .5, .3)]),
    'cat': _Toy('stripes', 'ff9c33 7d3a10 c8f06a',
        [_disc(0, .15, .9, .8), _poly(-.85, 0, -.85, -1.1, -.1, -.5),
         _poly(.85, 0, .85, -1.1, .1, -.5)], [_disc(-.35, .05, .17), _disc(.35, .05, .17)]),
    'chair': _Toy('weave', 'f0d79a 86642c c2342b',
        [_box(-.75, -1.15, -.3, 1.1), _box(-.75, -.05, .75, .4), _box(.35, .2, .75, 1.1)],
        [_box(-.32, -.32, .75, .05)]),
    'cow': _Toy('blotches', 'ffffff 181818 f2a0a8',
        [_disc(-.15, -.05, 1, .55), _disc(.85, -.4, .38, .36), _box(-.85, 0, -.45, .95),
         _box(.2, 0, .6, .95)], [_disc(1.08, -.22, .24, .2)]),
    'diningtable': _Toy('checks', 'ffffff e0202a 7a4a28',
        [_disc(0, -.3, 1.25, .5), _box(-1, -.3, 1, .3)],
        [_box(-.2, .3, .2, .9), _disc(0, .95, .55, .16)]),
    'dog': _Toy('fur', 'c08a52 5a3216 33200f', [_disc(0, 0, .75, .95), _disc(0, .5, .5, .5)],
        [_disc(-.72, -.1, .28, .65), _disc(.72, -.1, .28, .65), _disc(0, .4, .26, .18)]),
    'horse': _Toy('marble', '7440d8 d8bcff 35186b',
        [_poly(-.8, 1.1, -.7, .1, -.5, -.7, -.05, -1.35, .2, -.85, .5, -.6, 1.2, .05, 1.1, .4,
               .75, .45, .25, .1, .35, .5, .8, 1.1)],
        [_poly(-.85, .9, -1, 0, -.7, -.85, -.15, -1.2, -.35, -.6, -.55, .2), _disc(.3, -.4, .11),
         _disc(.98, .12, .08)]),
    'motorbike': _Toy('stripes', 'ffdc00 161616 4a4a52',
        [_poly(-1.1, -.4, -.2, -.35, .1, -.15, .35, -.8, .8, -.7, .8, .2, .3, .6, -.6, .6)],
        [_disc(-.75, .4, .5), _disc(.75, .4, .5)]),
    'person': _Toy('dots', '2f9bff f4fbff f0b48a',
        [_poly(-.55, -.4, .55, -.4, .85, 1.15, -.85, 1.15)], [_disc(0, -.8, .42, .46)]),
    'pottedplant': _Toy('curls', '0c5a1e 6fd03a c4572e',
        [_disc(0, -.6, .7, .6), _disc(-.55, -.15, .5, .45), _disc(.55, -.15, .5, .45),
         _disc(0, 0, .5)], [_poly(-.55, .2, .55, .2, .38, 1.1, -.38, 1.1)]),
    'sheep': _Toy('curls', 'fffdf4 9c948a 33302f',
        [_disc(-.2, 0, .85, .55), _disc(-.7, -.1, .45), _disc(.3, -.25, .5), _disc(-.2, -.35, .5)],
        [_disc(.85, -.05, .32, .4), _box(-.7, .4, -.4, .95), _box(.15, .4, .45, .95)]),
    'sofa': _Toy('dots', '9cae1e 4e5a08 e8e2b0',
        [_box(-.95, -.7, .95, .2), _box(-1.25, -.25, -.8, .75), _box(.8, -.25, 1.25, .75),
         _box(-1, .1, 1, .65)], [_box(-.75, -.1, -.05, .2), _box(.05, -.1, .75, .2)]),
    'train': _Toy('bands', 'f2c12e 1c2f8a d8452f',
        [_box(-1.2, -1, -.3, .5), _box(-.5, -.35, 1.1, .5), _box(.5, -.95, .9, 0)],
        [_disc(-.75, .6, .38), _disc(.05, .65, .3), _disc(.75, .65, .3),
         _box(-1, -.75, -.5, -.35)]),
    'tvmonitor': _Toy('rings', '1ce8ff 0a2fae 232329', [_box(-1.1, -.8, 1.1, .6)],
        [_box(-1.2, -.9, -.98, .7), _box(.98, -.9, 1.2, .7), _box(-1.2, -.9, 1.2, -.68),
         _box(-1.2, .48, 1.2, .7), _box(-.5, .7, .5, 1)]),
}
# fmt: on
CLASSES = ('background', *_TOYS)


# --- textures: fields of (h, w) in [0, 1], 0 being the first colour and 1 the second --------------


@lru_cache(maxsize=32)
def _amplitude(shape: tuple[int, int], beta: float, stretch: float) -> Array:
    fy, fx = np.fft.fftfreq(shape[0])[:, None] * stretch, np.fft.rfftfreq(shape[1])
    return np.maximum(np.hypot(fy, fx), 1 / max(shape)) ** -beta


def _noise(rng: Generator, shape: tuple[int, int], beta: float, stretch: float = 1) -> Array:
    """Noise of amplitude 1/f^beta (natural images: about 1), zero mean, unit deviation."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * _amplitude(shape, beta, stretch)
    field = np.fft.irfft2(spectrum, shape)
    return (field - field.mean()) / field.std()


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _wave(x: Array, sharpness: float = 3.0) -> Array:
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(2 * np.pi * x))


def _scales(u: Array, v: Array, n: Array) -> Array:
    row = np.floor(v * 2)
    return np.hypot((u + row / 2) % 1 - 0.5, (v * 2 - row) * 0.6) / 0.78


def _bricks(u: Array, v: Array, n: Array) -> Array:
    row = np.floor(v * 2)
    joint = np.minimum(np.abs((u / 1.4 + row / 2) % 1 - 0.5) * 1.4, np.abs((v * 2) % 1 - 0.5) / 2)
    return _sigmoid((0.08 - joint) * 60)


# each takes u, v (pattern coordinates, one period per unit) and n (slow noise)
_TEXTURES: dict[str, Callable[[Array, Array, Array], Array]] = {
    'plain': lambda u, v, n: _sigmoid(n),
    'stripes': lambda u, v, n: _wave(u + 0.1 * n),
    'bands': lambda u, v, n: _wave(v + 0.03 * n),
    'checks': lambda u, v, n: 0.5 + 2 * (_wave(u * 0.7) - 0.5) * (_wave(v * 0.7) - 0.5),
    'weave': lambda u, v, n: 0.5 * _wave(u * 1.6, 1.5) + 0.5 * _wave(v * 1.6, 1.5),
    'dots': lambda u, v, n: _wave(0.08 + 0.09 * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v))),
    'scales': _scales,
    'bricks': _bricks,
    'rings': lambda u, v, n: _wave(np.hypot(u, v), 1.5),
    'marble': lambda u, v, n: _wave(u / 3 + 0.5 * n, 1),
    'blotches': lambda u, v, n: _wave(0.1 * n + 0.15 * np.sin(u * 2.4) * np.sin(v * 2.4), 5),
    'curls': lambda u, v, n: _wave(1.2 * n, 1),
    'fur': lambda u, v, n: _sigmoid(2 * n),
}
_BETA = {'curls': 1.6, 'fur': 0.8, 'blotches': 2.0}


def _texture(
    rng: Generator, name: str, grid: Array, period: float, angle: float, origin: Array
) -> Array:
    """A texture on the pixel grid (2, h, w) of x, y; period in pixels, angle in radians."""
    x, y = (grid - origin[:, None, None]) / period
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    noise = _noise(rng, grid.shape[1:], _BETA.get(name, 1.5), 1 / 4 if name == 'fur' else 1)
    return _TEXTURES[name](u, v, noise)


# --- drawing --------------------------------------------------------------------------------------


def _unit(grid: Array) -> float:
    """Pixels to a 128th of the shorter side, by which every length grows with the image."""
    return min(grid.shape[1:]) / 128


def _jitter(rng: Generator, colours: str) -> Array:
    """(n, 3) RGB in [0, 1]: hex colours moved together in hue, saturation and brightness."""
    hue, saturation, value = rng.normal(0, 0.015), rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.1)
    out = []
    for colour in colours.split():
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in bytes.fromhex(colour)))
        out.append(colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), min(v * value, 1)))
    return np.array(out)


def _paint(field: Array, colours: Array) -> Array:
    return colours[0] + field[..., None] * (colours[1] - colours[0])


def _rounded(points: Array) -> Array:
    for _ in range(2):  # Chaikin's corner cutting
        following = np.roll(points, -1, axis=0)
        cut = np.stack([0.85 * points + 0.15 * following, 0.15 * points + 0.85 * following], axis=1)
        points = cut.reshape(-1, 2)
    return points


def _coverage(polygons: Iterable[Array], size: tuple[int, int]) -> Array:
    """(h, w) in [0, 1]: how much of each pixel the union of the polygons (in pixels) covers."""
    k = SUPERSAMPLING
    canvas = Image.new('L', (size[0] * k, size[1] * k))
    draw = ImageDraw.Draw(canvas)
    for points in polygons:
        draw.polygon([(x * k, y * k) for x, y in points.tolist()], fill=255)
    return np.asarray(canvas.reduce(k), dtype=float) / 255


def _blur(field: Array, radius: float) -> Array:
    image = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=float) / 255


@cache
def _side(name: str) -> float:
    """The side of the square with the toy's area, by which all classes get the same size."""
    toy = _TOYS[name]
    cover = _coverage([50 * _rounded(p) + 75 for p in toy.body + toy.trim], (150, 150))
    return float(np.sqrt(cover.sum())) / 50


def _pose(rng: Generator, centre: Array, scale: float) -> tuple[Callable[[Array], Array], float]:
    """A random map from the toy's frame to pixels, and the angle it turns by."""
    angle, shear = rng.normal(0, 0.25), rng.normal(0, 0.08)
    aspect, mirror = np.exp(rng.normal(0, 0.08)), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[mirror * aspect, shear], [0, 1 / aspect]])
    frequency, phase = rng.normal(0, 1.5, (2, 2)), rng.uniform(0, 2 * np.pi, 2)

    def warp(points: Array) -> Array:
        points = points + 0.04 * np.sin(points @ frequency + phase)
        return centre + scale * points @ matrix.T

    return warp, angle


def _toy(
    rng: Generator, name: str, grid: Array, centre: Array, side: float, light: Array
) -> tuple[Array, Array, Array]:
    """A toy of area side^2 at a place: its paint (h, w, 3), its coverage and its shadow (h, w)."""
    toy, unit = _TOYS[name], _unit(grid)
    warp, angle = _pose(rng, centre, side / _side(name))
    trim = [warp(_rounded(polygon)) for polygon in toy.trim]
    outline = [warp(_rounded(polygon)) for polygon in toy.body] + trim
    size = grid.shape[:0:-1]
    coverage, over = _coverage(outline, size), _coverage(trim, size)[..., None]
    shadow = _blur(_coverage([points + 4 * unit * light for points in outline], size), 3 * unit)

    colours = _jitter(rng, toy.colours)
    field = _texture(rng, toy.texture, grid, unit * rng.uniform(7, 11), angle, centre)
    paint = _paint(field, colours) * (1 - over) + colours[2] * over
    slope = np.gradient(_blur(coverage, 3 * unit))  # against the light it gives the toy relief
    relief = 1 + 2.5 * unit * (slope[1] * light[0] + slope[0] * light[1])
    return paint * relief[..., None], coverage, shadow


def _ground(rng: Generator, grid: Array) -> Array:
    """(h, w, 3): two muted textures that meet at a wavy horizon."""
    layers, unit = [], _unit(grid)
    for _ in range(2):
        hue, saturation, value = rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.35, 0.85)
        step = rng.uniform(0.04, 0.15) * rng.choice([-1, 1])
        shades = [((hue + d / 6) % 1, saturation, min(value + d, 0.95)) for d in (-step, step)]
        colours = np.array([colorsys.hsv_to_rgb(*shade) for shade in shades])
        name, origin = rng.choice(sorted(_TEXTURES)), unit * rng.uniform(0, 100, 2)
        period, angle = unit * rng.uniform(6, 16), rng.uniform(0, np.pi)
        field = _texture(rng, name, grid, period, angle, origin)
        grain = 1 + 0.075 * _noise(rng, grid.shape[1:], 1.0)
        layers.append(_paint(field, colours) * grain[..., None])
    wave = 3 * unit * np.sin(grid[0] / (9 * unit) + rng.uniform(0, 6))
    horizon = grid.shape[1] * rng.uniform(-0.2, 0.8) + wave
    below = _sigmoid((grid[1] - horizon) / unit)[..., None]
    return layers[0] * (1 - below) + layers[1] * below


def _light(rng: Generator, grid: Array, direction: Array) -> Array:
    """(h, w, 3) factor: slanting, uneven and slightly coloured."""
    across = (grid / np.array(grid.shape[:0:-1])[:, None, None] - 0.5) * direction[:, None, None]
    uneven = 1 + 0.2 * across.sum(axis=0) + 0.1 * _noise(rng, grid.shape[1:], 2.0)
    return np.clip(uneven, 0.6, 1.3)[..., None] * rng.normal(1, 0.03, 3) * rng.uniform(0.85, 1.1)


def _places(rng: Generator, count: int, size: tuple[int, int]) -> list[Array]:
    """Random centres, each the farthest from those before it among a few tries."""
    centres: list[Array] = []
    for _ in range(count):
        tries = rng.uniform(0.2, 0.8, (8, 2)) * size
        gaps = [min((np.hypot(*(t - c)) for c in centres), default=0.0) for t in tries]
        centres.append(tries[int(np.argmax(gaps))])
    return centres


def _pick_class(seed: int, split: int, index: int, slot: int) -> int:
    """The class of the object in an image's slot: 20 images in a row show each class once there."""
    turn, place = divmod(index, len(_TOYS))
    order = default_rng([seed, split, turn, slot, 1]).permutation(len(_TOYS))
    return 1 + int(order[place])


def draw_sample(
    split: str, index: int, size: tuple[int, int] = (128, 128), seed: int = 0
) -> tuple[Array, Array]:
    """Draw one image and its mask; they depend on nothing but the arguments.

    Args:
        split: ``'train'`` or ``'val'``.
        index: Number of the image in its split, from 0.
        size: Width and height in pixels.
        seed: Non-negative seed of the whole data set.

    Returns:
        The image, (height, width, 3) uint8 RGB, and the mask, (height, width) uint8 of class
        indices 0..20, with 255 along the borders between objects and ground.

    Raises:
        ValueError: There is no such split.

    Example:
        >>> image, mask = draw_sample('train', 0, size=(160, 120))
        >>> image.shape, mask.shape
        ((120, 160, 3), (120, 160))
    """
    if split not in SPLITS:
        raise ValueError(f'expected split to be one of {SPLITS}, got {split!r}')
    part = SPLITS.index(split)
    rng = default_rng([seed, part, index, 0, 0])
    grid = np.stack(np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5))
    image = _ground(rng, grid)
    mask = np.zeros(grid.shape[1:], np.uint8)
    instances = mask.copy()
    turn = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(turn), np.sin(turn)])

    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.35, 0.15]))
    centres = _places(rng, count, size)
    # The first is drawn last and so wholly in sight: 20 images suffice to show every class.
    for slot in reversed(range(count)):
        label = _pick_class(seed, part, index, slot)
        side = min(size) * rng.uniform(0.36, 0.56) * (1.15 - 0.08 * count)
        paint, coverage, shadow = _toy(rng, CLASSES[label], grid, centres[slot], side, direction)
        image *= 1 - 0.35 * shadow[..., None]
        image += (paint - image) * coverage[..., None]
        mask[coverage > 0.5] = label
        instances[coverage > 0.5] = slot + 1

    image = image * _light(rng, grid, direction) + rng.normal(0, 0.012, image.shape)
    window = 2 * max(1, round(_unit(grid))) + 1
    ids = Image.fromarray(instances)
    highest = ids.filter(ImageFilter.MaxFilter(window))
    lowest = ids.filter(ImageFilter.MinFilter(window))
    mask[np.asarray(highest) != np.asarray(lowest)] = VOID
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask
