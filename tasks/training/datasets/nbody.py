"""N-body MNIST: digits that attract each other, made from a file of digits; a sequence is a function of its number.

Three digits cropped to their ink fly over 128 x 128 cells for five times as many steps as there are frames; every fifth
step is drawn at sub-pixel position (bilinear, maximum of the digits) and halved in size (bicubic). The acceleration is
G sum (x_j - x_i) / (|x_j - x_i|^2 + softening^2)^((power + 1) / 2) between the digits' upper left corners; a digit
whose centre leaves [10, 118] is put back on that line and turns round.

References:
    Gao et al. (2022), Earthformer, arXiv:2207.05833, section 4.1 (20,000, 1,000 and 1,000 sequences, 10 + 10 frames).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import fsspec
import numpy as np
import torch
from numpy.typing import NDArray

from tasks.training.datasets.sequences import DatasetError, DatasetInfo, fingerprint

Float32 = NDArray[np.float32]

FRAMES, CADENCE_S, CELL_M = 20, 300, 1000.0
COUNTS = {"train": 20_000, "val": 1_000, "test": 1_000}
DIGITS = 40_000  # the first so many images of the file are drawn from, in all splits, as published
INK = 5.0  # brightness above which a pixel belongs to the digit's bounding box
BORDER = 10.0
_IDX_UINT8 = 0x08


@dataclass(frozen=True)
class Physics:
    """The world the digits move in.

    Attributes:
        gravity: G.
        softening: Length below which the force no longer grows [cells].
        power: Of the distance: 0 (published), 1 or 2.
        bodies: Digits of a sequence.
        speed: Largest speed per step and component [cells].
        canvas: Side of the world [cells]; frames are half of it.
        stride: Steps between two frames.
    """

    gravity: float = 0.05
    softening: float = 10.0
    power: int = 0
    bodies: int = 3
    speed: float = 2.0
    canvas: int = 128
    stride: int = 5


@dataclass(frozen=True)
class Launch:
    """How the digits of one sequence start.

    Attributes:
        digits: (body,) which image of the file.
        corner: (body, 2) upper left corner (x, y), 0..1 of the room that the digit leaves.
        speed: (body,) cells per step.
        angle: (body,) direction of flight, radians from x towards y.
    """

    digits: NDArray[np.int64]
    corner: NDArray[np.float64]
    speed: NDArray[np.float64]
    angle: NDArray[np.float64]


def random_launch(seed: int, sequence: int, images: int, physics: Physics) -> Launch:
    """The start of sequence number `sequence`: a function of (seed, sequence)."""
    random = np.random.default_rng((seed, sequence))
    bodies = physics.bodies
    return Launch(
        random.integers(0, images, bodies),
        random.random((bodies, 2)),
        random.uniform(0.0, physics.speed, bodies),
        random.uniform(0.0, 2.0 * np.pi, bodies),
    )


def crop(image: NDArray[Any]) -> Float32:
    """A digit (y, x) cut to the bounding box of its ink.

    Raises:
        ValueError: there is none.
    """
    rows, columns = (np.flatnonzero((image > INK).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise ValueError("expected an image with a digit; it is empty")
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def trajectory(launch: Launch, sizes: NDArray[np.float64], steps: int, physics: Physics) -> Float32:
    """Upper left corners (step, body, 2) as (x, y) [cells]; `sizes` (body, 2) are the digits' (width, height)."""
    position = (launch.corner * (physics.canvas - sizes)).astype(np.float32)
    direction = np.stack([np.cos(launch.angle), np.sin(launch.angle)], axis=-1)
    velocity = (launch.speed[:, None] * direction).astype(np.float32)
    centre, path = sizes / 2, [position]
    for _ in range(steps - 1):
        pushed = velocity + _acceleration(position, physics)
        velocity = np.clip(pushed, -physics.speed, physics.speed).astype(np.float32)
        middle = position + velocity + centre
        kept = np.clip(middle, BORDER, physics.canvas - BORDER)
        velocity = np.where(middle == kept, velocity, -velocity)
        position = np.where(middle == kept, position + velocity, kept - centre).astype(np.float32)
        path.append(position)
    return np.stack(path)


def _acceleration(position: Float32, physics: Physics) -> Float32:
    apart = position[None] - position[:, None]
    squared = (apart**2).sum(axis=-1) + np.float32(physics.softening) ** 2
    pull = apart / (squared ** np.float32((physics.power + 1) / 2))[..., None]
    return np.asarray(np.float32(physics.gravity) * pull.sum(axis=1), np.float32)


def draw(digits: Sequence[Float32], corners: Float32, canvas: int) -> Float32:
    """One frame (canvas / 2, canvas / 2), 0..1, of digits (y, x) in 0..255 at corners (body, 2) as (x, y)."""
    scene = np.zeros((canvas, canvas), np.float32)
    for digit, (x, y) in zip(digits, corners, strict=True):
        move = np.array([[1, 0, x], [0, 1, y]], np.float32)
        np.maximum(scene, cv2.warpAffine(digit, move, (canvas, canvas), flags=cv2.INTER_LINEAR), out=scene)
    half = (canvas // 2, canvas // 2)
    small = torch.nn.functional.interpolate(torch.from_numpy(scene)[None, None], half, mode="bicubic")
    return np.asarray(small[0, 0].clamp(0, 255) / 255, np.float32)


def read_digits(url: str, storage: Mapping[str, Any] | None = None) -> NDArray[np.uint8]:
    """Images uint8 (image, y, x) of a file in MNIST's IDX form (.gz or not) or a NumPy array (.npy).

    Raises:
        DatasetError: the file is missing, damaged, or holds something else.
    """
    try:
        with fsspec.open(url, "rb", **(storage or {})) as stream:
            content = stream.read()
        if url.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DatasetError(f"expected a file of digits at {url}; {type(error).__name__}: {error}") from error
    return _numpy_images(content, url) if content[:6] == b"\x93NUMPY" else _idx_images(content, url)


def _idx_images(content: bytes, url: str) -> NDArray[np.uint8]:
    head = np.frombuffer(content[:16], ">u1")
    if len(content) < 16 or tuple(head[:4]) != (0, 0, _IDX_UINT8, 3):
        raise DatasetError(f"expected images in IDX form (magic 00000803) in {url}; got {content[:4].hex()}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:16], ">u4"))
    if len(content) - 16 != shape[0] * shape[1] * shape[2]:
        raise DatasetError(f"expected {shape} bytes of images after the header of {url}; got {len(content) - 16}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def _numpy_images(content: bytes, url: str) -> NDArray[np.uint8]:
    from io import BytesIO

    try:
        images = np.load(BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise DatasetError(f"expected a NumPy array of digits in {url}; {error}") from error
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DatasetError(f"expected uint8 (image, y, x) in {url}; got {images.dtype} {images.shape}")
    return np.asarray(images, np.uint8)


class NBody:
    """Sequences of N-body MNIST, generated when read."""

    def __init__(
        self,
        digits: str,
        storage: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        physics: Physics | None = None,
        frames: int = FRAMES,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Read the digits (`train-images-idx3-ubyte.gz` of MNIST, say).

        Args:
            digits: Address of the file.
            storage: fsspec options for it.
            seed: Of all sequences.
            physics: The world; as published where None.
            frames: Of a sequence.
            counts: Sequences of train, val and test; as published where None.

        Raises:
            DatasetError: the file is missing, damaged, or holds something else than digits.
        """
        self.images = read_digits(digits, storage)[:DIGITS]
        if not len(self.images) or not (self.images > INK).any(axis=(1, 2)).all():
            raise DatasetError(f"expected digits in every image of {digits}; some are empty")
        self.seed, self.physics, sizes = seed, physics or Physics(), counts or COUNTS
        side = self.physics.canvas // 2
        digest = fingerprint("nbody", seed, self.physics, frames, dict(sizes), self.images.shape, self.images.sum())
        self.info = DatasetInfo("nbody", digest, "brightness", CADENCE_S, CELL_M, (side, side))
        ends = np.cumsum([sizes[split] for split in ("train", "val", "test")])
        starts = np.concatenate([[0], ends[:-1]])
        self.splits = {
            split: np.arange(first, last)
            for split, first, last in zip(("train", "val", "test"), starts, ends, strict=True)
        }
        self.lengths = np.full(int(ends[-1]), frames, np.int64)
        self.strides = dict.fromkeys(self.splits, frames)

    def read(self, sequence: int) -> Float32:
        """Generate sequence number `sequence`: float32 (frame, y, x), 0..1."""
        launch = random_launch(self.seed, sequence, len(self.images), self.physics)
        digits = [crop(self.images[number]) for number in launch.digits]
        sizes = np.array([digit.shape[::-1] for digit in digits], np.float64)
        frames, stride = int(self.lengths[sequence]), self.physics.stride
        path = trajectory(launch, sizes, frames * stride, self.physics)
        return np.stack([draw(digits, corners, self.physics.canvas) for corners in path[::stride]])

    def values(self, raw: NDArray[Any]) -> Float32:
        """As they are."""
        return np.asarray(raw, np.float32)

    def start(self, sequence: int) -> np.datetime64:
        """Sequences follow each other in a calendar of their own."""
        return np.datetime64("2000-01-01", "ns") + np.timedelta64(sequence * FRAMES * CADENCE_S, "s")

    def name(self, sequence: int) -> str:
        """Its number."""
        return f"sequence-{sequence}"
