"""Radar units: dBZ to and from mm h-1, VIL from reflectivity and from SEVIR's byte code, depths to rates.

NaN (not observed) stays NaN in every conversion; dry and "no echo" map to each other and to nothing else.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]

MARSHALL_PALMER = (200.0, 1.6)
NO_ECHO = -33.0
"""dBZ that stands for "no echo": code 0 of the WSR-88D byte scale (code - 66) / 2, one step below its weakest echo."""


def linear(dbz: ArrayLike, no_echo: float | None = None) -> NDArray[np.float64]:
    """Reflectivity dBZ as the linear factor Z [mm6 m-3]; `no_echo` and below give 0."""
    values = np.asarray(dbz, np.float64)
    factor = np.power(10.0, values / 10.0)
    if no_echo is None:
        return factor
    return np.where(values <= max(no_echo, float(np.float32(no_echo))), 0.0, factor)


def decibels(factor: ArrayLike, no_echo: float = NO_ECHO) -> Array:
    """Linear Z [mm6 m-3] in dBZ; anything weaker than `no_echo` gives `no_echo`.

    Raises:
        ValueError: a negative factor.
    """
    values = np.asarray(factor, np.float64)
    if np.any(values < 0):
        raise ValueError(f"expected Z >= 0 mm6 m-3; got {np.nanmin(values)}")
    floor = 10.0 ** (no_echo / 10.0)
    weak = values <= floor
    return np.where(weak, no_echo, 10.0 * np.log10(np.where(weak, 1.0, values))).astype(np.float32)


def rain_to_dbz(
    rain: ArrayLike, a: float = MARSHALL_PALMER[0], b: float = MARSHALL_PALMER[1], no_echo: float = NO_ECHO
) -> Array:
    """Rain rate [mm h-1] in dBZ by Z = a R^b; 0 (dry) gives `no_echo`, NaN stays NaN.

    References:
        Marshall and Palmer (1948), doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2 (a = 200, b = 1.6).

    Raises:
        ValueError: a negative rate.
    """
    rates = np.asarray(rain, np.float64)
    if np.any(rates < 0):
        raise ValueError(f"expected rain >= 0 mm h-1; got {np.nanmin(rates)}")
    return decibels(a * np.power(rates, b), no_echo)


def dbz_to_rain(
    dbz: ArrayLike, a: float = MARSHALL_PALMER[0], b: float = MARSHALL_PALMER[1], no_echo: float = NO_ECHO
) -> Array:
    """Reflectivity dBZ as rain rate [mm h-1] by Z = a R^b; `no_echo` and below give exactly 0, NaN stays NaN.

    References:
        Marshall and Palmer (1948), doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2 (a = 200, b = 1.6).
    """
    return np.power(linear(dbz, no_echo) / a, 1.0 / b).astype(np.float32)


def depth_to_rate(depth: ArrayLike, interval: timedelta) -> Array:
    """Depth [mm] fallen in `interval` as rain rate [mm h-1]."""
    return (np.asarray(depth, np.float64) * (timedelta(hours=1) / interval)).astype(np.float32)


def rate_to_depth(rain: ArrayLike, interval: timedelta) -> Array:
    """Rain rate [mm h-1] kept up for `interval` as depth [mm]."""
    return (np.asarray(rain, np.float64) * (interval / timedelta(hours=1))).astype(np.float32)


def profile_to_vil(dbz: ArrayLike, height: ArrayLike, ceiling: float = 56.0, no_echo: float = NO_ECHO) -> Array:
    """VIL [kg m-2] of reflectivity profiles (level, ...) dBZ at `height` (level,) [m], from the mean Z of each layer.

    Echo above `ceiling` dBZ counts as `ceiling` (hail). A column with a NaN level is NaN.

    References:
        Greene and Clark (1972), doi:10.1175/1520-0493(1972)100<0548:VILWNA>2.3.CO;2: M = 3.44e-6 Z^(4/7) kg m-3.
    """
    factor = linear(np.minimum(np.asarray(dbz, np.float64), ceiling), no_echo)
    layers = (factor[1:] + factor[:-1]) / 2.0
    depth = np.diff(np.asarray(height, np.float64)).reshape(-1, *([1] * (layers.ndim - 1)))
    return np.asarray(np.sum(3.44e-6 * np.power(layers, 4.0 / 7.0) * depth, axis=0), np.float32)


def sevir_to_vil(code: ArrayLike) -> Array:
    """SEVIR's byte code as VIL [kg m-2]; code 255 (missing) gives NaN, codes up to 5 give 0.

    References:
        Veillette, Samsi and Mattioli (2020), SEVIR, NeurIPS 33, 22009-22019, and the data set's VIL description.
    """
    x = np.asarray(code, np.float64)
    vil = np.where(x <= 18, (x - 2.0) / 90.66, np.exp((x - 83.9) / 38.9))
    return np.where(x == 255, np.nan, np.where(x <= 5, 0.0, vil)).astype(np.float32)


def vil_to_sevir(vil: ArrayLike) -> NDArray[np.uint8]:
    """VIL [kg m-2] as SEVIR's byte code, the nearest of 0, 6..254; NaN gives 255.

    References:
        Veillette, Samsi and Mattioli (2020), SEVIR, NeurIPS 33, 22009-22019, and the data set's VIL description.
    """
    values = np.asarray(vil, np.float64)
    table = sevir_to_vil(np.arange(255)).astype(np.float64)
    codes = np.array([0, *range(6, 255)])
    edges = (table[codes][1:] + table[codes][:-1]) / 2.0
    nearest = codes[np.searchsorted(edges, np.where(np.isnan(values), 0.0, values))]
    return np.where(np.isnan(values), 255, nearest).astype(np.uint8)
