"""A domain's frames as a model trained elsewhere wants them, and its forecast back on the domain's grid.

A model trained on coarser cells gets block means by the nearest whole factor; one trained on another radar quantity
gets the converted one; one trained where dry reflectivity has another value than here sees that value. NaN (not
observed) stays NaN and dry stays dry, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tasks.grid import cell_size_m, coarsen
from tasks.units import NO_ECHO, dbz_to_rain, rain_to_dbz, sevir_to_vil, vil_to_sevir

Fields = NDArray[np.float32]

_RAIN, _DBZ = "rainfall_rate", "equivalent_reflectivity_factor"
_VIL, _CODE = "vil", "vil_code"
_LARGEST_CODE = 254.0  # 255 stands for missing
_FAINTEST = 0.1  # dB above "no echo" that the weakest echo has at least, where "no echo" is moved up to it


class Unsuitable(ValueError):
    """A model cannot be given this context: other quantity, cadence or length."""


@dataclass(frozen=True)
class Needs:
    """What a model was trained on.

    Attributes:
        t_in: Frames of context; the newest ones are taken.
        quantity: rainfall_rate, equivalent_reflectivity_factor, vil or vil_code (SEVIR's); None takes the domain's.
        cell_size_m: Side of its training cells [m]; None takes the domain's.
        cadence_s: Step between its frames [s]; None takes the domain's.
        no_echo: dBZ of "no echo" in what it was trained on; None: not known, or no reflectivity.
    """

    t_in: int
    quantity: str | None = None
    cell_size_m: float | None = None
    cadence_s: float | None = None
    no_echo: float | None = None


@dataclass(frozen=True)
class Adapted:
    """A context in a model's own terms.

    Attributes:
        values: (time, y, x) float32 in the model's quantity, on cells `factor` times coarser; NaN = not observed.
        factor: Cells of the domain along one side of a cell of the model.
        quantity: The model's.
        note: What was changed, in words; empty for nothing.
    """

    values: Fields
    factor: int
    quantity: str
    note: str


def adapt(frames: xr.DataArray, needs: Needs, cadence_s: float) -> Adapted:
    """`frames` (time, y, x) of a domain in the terms of `needs`.

    Raises:
        Unsuitable: too few frames, another cadence, or a quantity that cannot be converted.
    """
    if frames.sizes["time"] < needs.t_in:
        raise Unsuitable(f"expected {needs.t_in} context frames; got {frames.sizes['time']}")
    if needs.cadence_s is not None and abs(needs.cadence_s - cadence_s) > 1:
        raise Unsuitable(f"expected frames every {needs.cadence_s:g} s as trained; got every {cadence_s:g} s")
    frames = frames.isel(time=slice(frames.sizes["time"] - needs.t_in, None))
    have, want = str(frames.name), needs.quantity or str(frames.name)
    factor, notes = _factor(frames, needs), []
    if needs.cell_size_m is not None:
        size = factor * cell_size_m(frames)
        if abs(needs.cell_size_m / size - 1) > 0.05:
            notes.append(f"cells of {size:.0f} m for a model of {needs.cell_size_m:.0f} m")
    if factor > 1:
        notes.append(f"block means of {factor} x {factor} cells, refined bilinearly")
    no_echo = frames.attrs.get("no_echo")
    if have != want:
        notes.append(f"{have} converted to {want} and back")
    elif needs.no_echo not in (None, no_echo):
        notes.append(f"no echo at {needs.no_echo:g} dBZ instead of {no_echo:g} and back")
    values = _converted(_blocks(frames, factor), have, want, needs, no_echo)
    return Adapted(values, factor, want, "; ".join(notes))


def restore(forecast: Fields, adapted: Adapted, frames: xr.DataArray, needs: Needs) -> Fields:
    """A model's forecast (member, lead_time, yc, xc) in the quantity and on the grid (y, x) of `frames`."""
    no_echo = frames.attrs.get("no_echo")
    values = _reverted(forecast, adapted.quantity, str(frames.name), needs, no_echo)
    if adapted.factor == 1:
        return values
    shape = (frames.sizes["y"], frames.sizes["x"])
    flat = values.reshape(-1, *values.shape[-2:])
    fine = np.stack([_refined(field, adapted.factor, shape) for field in flat])
    return fine.reshape(*values.shape[:2], *shape)


def first_cell(frames: xr.DataArray, needs: Needs) -> tuple[int, int]:
    """(row, column) of the first cell of `frames` in cells of the model, counted from the origin of the CRS.

    Grids that are windows of one another by whole cells of the model have the same numbers for the same place.
    """
    factor = _factor(frames, needs)
    y, x = (frames[axis].values for axis in ("y", "x"))
    row, column = (round(float(axis[0] / (axis[1] - axis[0])) / factor) for axis in (y, x))
    return row, column


def _factor(frames: xr.DataArray, needs: Needs) -> int:
    """Cells of the domain along one side of a cell of the model."""
    return 1 if needs.cell_size_m is None else max(1, round(needs.cell_size_m / cell_size_m(frames)))


def _blocks(frames: xr.DataArray, factor: int) -> Fields:
    if factor == 1:
        return np.asarray(frames.values, np.float32)
    # The edge is repeated up to a whole block, so that no row or column of the domain goes without a forecast.
    short = [(0, -frames.sizes[axis] % factor) for axis in ("y", "x")]
    padded = np.pad(frames.values, [(0, 0), *short], mode="edge")
    axes = {axis: np.arange(size, dtype=float) for axis, size in zip(("y", "x"), padded.shape[1:], strict=True)}
    means = coarsen(xr.DataArray(padded, axes, ("time", "y", "x"), frames.name, frames.attrs), factor)
    return np.asarray(means.values, np.float32)


def _refined(field: Fields, factor: int, shape: tuple[int, int]) -> Fields:
    seen = np.isfinite(field)
    value, weight = (
        cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)[: shape[0], : shape[1]]
        for part in (np.where(seen, field, np.float32(0)), seen.astype(np.float32))
    )
    known = weight >= 0.5
    return np.where(known, value / np.where(known, weight, 1), np.float32(np.nan)).astype(np.float32)


def _converted(values: Fields, have: str, want: str, needs: Needs, no_echo: float | None) -> Fields:
    if have == want:
        return _moved(values, no_echo, needs.no_echo) if have == _DBZ else values
    if (have, want) == (_RAIN, _DBZ):
        return _moved(rain_to_dbz(values), NO_ECHO, needs.no_echo)
    if (have, want) == (_DBZ, _RAIN):
        return dbz_to_rain(values, no_echo=NO_ECHO if no_echo is None else no_echo)
    if (have, want) == (_VIL, _CODE):
        return np.where(np.isnan(values), np.float32(np.nan), vil_to_sevir(values).astype(np.float32))
    raise Unsuitable(f"expected {want} or what converts to it; got {have}")


def _reverted(values: Fields, have: str, want: str, needs: Needs, no_echo: float | None) -> Fields:
    if (have, want) == (_DBZ, _RAIN):
        return dbz_to_rain(_moved(values, needs.no_echo, NO_ECHO))
    if (have, want) == (_RAIN, _DBZ):
        return rain_to_dbz(np.maximum(values, 0), no_echo=NO_ECHO if no_echo is None else no_echo)
    if (have, want) == (_CODE, _VIL):
        return sevir_to_vil(np.minimum(values, _LARGEST_CODE))
    if have == want == _DBZ:
        return _moved(values, _higher(needs.no_echo, no_echo), no_echo)
    return np.asarray(values, np.float32)


def _higher(dry: float | None, other: float | None) -> float | None:
    """What is fainter than the domain's own dry cells is dry, however finely the model tells such echoes apart."""
    return dry if dry is None or other is None else max(dry, other)


def _moved(values: Fields, dry: float | None, to: float | None) -> Fields:
    """Reflectivity [dBZ] with `to` where it is at most `dry`; what is above `dry` stays above `to`, NaN stays NaN."""
    known = np.asarray(values, np.float32)
    if dry is None or to is None:
        return known
    echo = np.maximum(known, np.float32(to + _FAINTEST)) if to > dry else known
    return np.where(known <= np.float32(dry), np.float32(to), echo)
