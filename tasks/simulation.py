"""Rain with known dynamics: cells are born, move with a smoothly varying wind, grow, merge and decay.

For the demo, tests and pretraining. A cell's shape tells its age (young ones are small and sharp, old ones wide), so a
learner that sees a few frames can foresee growth and decay, which extrapolation along the motion cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DRY_BELOW = 0.1
"""Rates [mm h-1] below this are dry: it is MRMS's step."""
HEAVIEST = 150.0
"""No cell of the grid exceeds this rate [mm h-1]."""

_SPIN_UP = timedelta(hours=2)
_MARGIN = 40_000.0
_REACH = 4.0
_MERGE_WITHIN = 0.5


@dataclass(frozen=True)
class Wind:
    """A mean wind that slowly turns, and drifting eddies without divergence.

    Attributes:
        east: Mean eastward component at time 0 [m s-1].
        north: Mean northward component at time 0 [m s-1].
        turning: Turning of the mean wind, anticlockwise [rad s-1].
        eddy: Speed of the eddies [m s-1].
        wavelength: Wavelength of the eddies [m].
        phase: Phases of the eddies along east and north [rad].
    """

    east: float
    north: float
    turning: float = 0.0
    eddy: float = 0.0
    wavelength: float = 150_000.0
    phase: tuple[float, float] = (0.0, 0.0)

    def velocity(self, x: Float64, y: Float64, seconds: float) -> tuple[Float64, Float64]:
        """Eastward and northward components [m s-1] at metres (x, y) from the origin, `seconds` after the start."""
        cosine, sine = math.cos(self.turning * seconds), math.sin(self.turning * seconds)
        k = 2.0 * math.pi / self.wavelength
        a, b = k * x + self.phase[0], k * y + self.phase[1]
        u = self.east * cosine - self.north * sine + self.eddy * np.cos(a) * np.cos(b)
        v = self.east * sine + self.north * cosine + self.eddy * np.sin(a) * np.sin(b)
        return u, v


@dataclass(frozen=True)
class Cells:
    """Rain cells (cell,): elliptic Gaussians with a life cycle.

    Attributes:
        x: Metres east of the grid's centre.
        y: Metres north of the grid's centre.
        age: Seconds since birth.
        lifetime: Seconds from birth to death.
        peak: Rate at the centre at half life [mm h-1].
        radius: Standard deviation at half life [m].
        stretch: Long axis over short axis.
        angle: Direction of the long axis, anticlockwise from east [rad].
    """

    x: Float64
    y: Float64
    age: Float64
    lifetime: Float64
    peak: Float64
    radius: Float64
    stretch: Float64
    angle: Float64

    def __len__(self) -> int:
        return self.x.size

    @property
    def intensity(self) -> Float64:
        """Rate at the centre now [mm h-1]: rises from 0 at birth, falls to 0 at death."""
        return self.peak * np.sin(np.pi * np.clip(self.age / self.lifetime, 0.0, 1.0))

    @property
    def width(self) -> Float64:
        """Standard deviation now [m]: 0.6 of `radius` at birth, 1.4 at death."""
        return self.radius * (0.6 + 0.8 * np.clip(self.age / self.lifetime, 0.0, 1.0))

    def take(self, chosen: Mask | npt.NDArray[np.int64]) -> Cells:
        """The chosen cells."""
        return Cells(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def join(self, other: Cells) -> Cells:
        """These cells and the others."""
        return Cells(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


NO_CELLS = Cells(*(np.empty(0) for _ in fields(Cells)))


@dataclass(frozen=True)
class Weather:
    """What the simulated sky does.

    Attributes:
        wind: What moves the cells.
        births: Cells born per hour and 10,000 km2.
        cells: Cells that exist at the start; None lets two hours of births and deaths pass beforehand.
    """

    wind: Wind
    births: float = 10.0
    cells: Cells | None = None


def random_weather(rng: np.random.Generator) -> Weather:
    """A wind of 6 to 16 m s-1 from anywhere that turns by at most 20 degrees an hour, with eddies of 1 to 3 m s-1."""
    speed, direction = rng.uniform(6.0, 16.0), rng.uniform(0.0, 2.0 * math.pi)
    return Weather(
        Wind(
            east=speed * math.cos(direction),
            north=speed * math.sin(direction),
            turning=rng.uniform(-1.0, 1.0) * math.radians(20.0) / 3600.0,
            eddy=rng.uniform(1.0, 3.0),
            wavelength=rng.uniform(100_000.0, 250_000.0),
            phase=(rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.0, 2.0 * math.pi)),
        )
    )


def simulate(
    start: datetime,
    steps: int,
    cadence: timedelta,
    shape: tuple[int, int] = (256, 256),
    cell_size_m: float = 1000.0,
    seed: int = 0,
    weather: Weather | None = None,
) -> Iterator[tuple[datetime, Float32]]:
    """Frames from `start` on: (time, rain rate (y, x) [mm h-1], rows from north to south).

    NaN marks one fixed patch without coverage. The same arguments give the same frames, bit for bit.
    """
    rng = np.random.default_rng(seed)
    weather = random_weather(rng) if weather is None else weather
    unseen = no_coverage(shape, rng)
    reach = tuple(side * cell_size_m / 2.0 + _MARGIN for side in shape)
    cells, seconds, step = weather.cells, 0.0, cadence.total_seconds()
    if cells is None:
        cells, warm_up = NO_CELLS, round(_SPIN_UP / cadence)
        for number in range(warm_up):
            cells = advance(cells, weather, (number - warm_up) * step, step, reach, rng)
    for number in range(steps):
        yield start + number * cadence, np.where(unseen, np.float32(np.nan), render(cells, shape, cell_size_m))
        cells = advance(cells, weather, seconds, step, reach, rng)
        seconds += step


def advance(
    cells: Cells, weather: Weather, seconds: float, step: float, reach: tuple[float, ...], rng: np.random.Generator
) -> Cells:
    """The cells `step` seconds later: moved (midpoint rule), aged, dead or departed, merged, and new ones born."""
    u, v = weather.wind.velocity(cells.x, cells.y, seconds)
    half = step / 2.0
    u, v = weather.wind.velocity(cells.x + half * u, cells.y + half * v, seconds + half)
    moved = replace(cells, x=cells.x + step * u, y=cells.y + step * v, age=cells.age + step)
    north, east = reach
    alive = (moved.age < moved.lifetime) & (np.abs(moved.x) < 2 * east) & (np.abs(moved.y) < 2 * north)
    return merge(moved.take(alive)).join(_born(cells, weather.births, step, reach, rng))


def _born(parents: Cells, births: float, step: float, reach: tuple[float, ...], rng: np.random.Generator) -> Cells:
    north, east = reach
    area = 4.0 * north * east / 1e10
    count = int(rng.poisson(births * area * step / 3600.0))
    x, y = rng.uniform(-east, east, count), rng.uniform(-north, north, count)
    # Half of the cells are born at the flank of an older one, as storms are: these are the ones that merge.
    beside = rng.random(count) < 0.5
    offsets = rng.normal(0.0, 8_000.0, (2, count))
    if len(parents):
        chosen = rng.integers(0, len(parents), count)
        x = np.where(beside, parents.x[chosen] + offsets[0], x)
        y = np.where(beside, parents.y[chosen] + offsets[1], y)
    return Cells(
        x=x,
        y=y,
        age=np.zeros(count),
        lifetime=rng.uniform(1800.0, 5400.0, count),
        peak=np.minimum(rng.lognormal(math.log(12.0), 0.7, count), 100.0),
        radius=rng.uniform(1_500.0, 4_500.0, count),
        stretch=rng.uniform(1.0, 2.0, count),
        angle=rng.uniform(0.0, math.pi, count),
    )


def merge(cells: Cells) -> Cells:
    """Pairs of cells closer than half the sum of their widths become one with the rain of both, closest pair first."""
    while len(cells) > 1:
        width = cells.width
        distance = np.hypot(cells.x[:, None] - cells.x, cells.y[:, None] - cells.y)
        nearness = distance / (_MERGE_WITHIN * (width[:, None] + width))
        np.fill_diagonal(nearness, np.inf)
        one, other = np.unravel_index(int(np.argmin(nearness)), nearness.shape)
        if nearness[one, other] >= 1.0:
            return cells
        pair = cells.take(np.array([one, other], np.int64))
        rest = cells.take(~np.isin(np.arange(len(cells)), [one, other]))
        cells = rest.join(_merged(pair))
    return cells


def _merged(pair: Cells) -> Cells:
    """One cell with the pair's rain volume, at its centre of mass, at the stage of life of the heavier one."""
    volume = pair.intensity * pair.width**2 * pair.stretch
    weight = volume / volume.sum() if volume.sum() > 0 else np.array([0.5, 0.5])
    heavier = pair.take(np.array([int(np.argmax(weight))], np.int64))
    grown = replace(
        heavier,
        x=np.array([weight @ pair.x]),
        y=np.array([weight @ pair.y]),
        radius=np.array([math.hypot(*pair.radius)]),
    )
    alone = float((grown.intensity * grown.width**2 * grown.stretch)[0])
    return replace(grown, peak=grown.peak * (float(volume.sum()) / alone if alone > 0 else 1.0))


def render(cells: Cells, shape: tuple[int, int], cell_size_m: float) -> Float32:
    """Rain rate (y, x) [mm h-1] of the cells on a grid around the origin, rows from north to south."""
    ny, nx = shape
    rain = np.zeros(shape, np.float64)
    east = (np.arange(nx) - (nx - 1) / 2.0) * cell_size_m
    north = ((ny - 1) / 2.0 - np.arange(ny)) * cell_size_m
    for x, y, peak, width, stretch, angle in zip(
        cells.x, cells.y, cells.intensity, cells.width, cells.stretch, cells.angle, strict=True
    ):
        reach = _REACH * width * stretch
        rows, columns = np.abs(north - y) < reach, np.abs(east - x) < reach
        if not rows.any() or not columns.any():
            continue
        dx, dy = east[columns][None, :] - x, north[rows][:, None] - y
        along = (dx * math.cos(angle) + dy * math.sin(angle)) / (width * stretch)
        across = (dy * math.cos(angle) - dx * math.sin(angle)) / width
        rain[np.ix_(rows, columns)] += peak * np.exp(-0.5 * (along**2 + across**2))
    return np.where(rain < DRY_BELOW, 0.0, np.minimum(rain, HEAVIEST)).astype(np.float32)


def no_coverage(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """A disc near one corner, at most a fiftieth of the grid, that no radar sees."""
    ny, nx = shape
    radius = math.sqrt(ny * nx / (50.0 * math.pi))
    row = (0.15 if rng.random() < 0.5 else 0.85) * (ny - 1)
    column = (0.15 if rng.random() < 0.5 else 0.85) * (nx - 1)
    inside: Mask = np.hypot(np.arange(ny)[:, None] - row, np.arange(nx) - column) < radius
    return inside
