"""A forecast as the product that people open: CF variables, probabilities, accumulations, coverage, provenance."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import timedelta
from functools import lru_cache

import dask.array as da
import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray

from infra.settings import Domain
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import intensity_in_words
from tasks.forecasting.ladder import Forecast
from tasks.grid import cell_size_m, grid_coordinates, latlon
from tasks.products.exceedance import exceedance, member_quantiles, neighbourhood_half_width_m
from tasks.units import NO_ECHO, decibels, linear

Fields = NDArray[np.float32]
Variables = dict[Hashable, xr.Variable]

# Bits of a float32's 23 that are kept: a relative error below 1/512, a twentieth of the half-decibel step of radar
# codes; relative, so that a wet cell stays wet.
_MANTISSA_BITS = 8
_HOUR = timedelta(hours=1)


def build_product(forecast: Forecast, context: Context, domain: Domain) -> xr.Dataset:
    """The product of a forecast (contracts.md, "Product").

    Returns:
        <quantity> (member, lead_time, y, x) and <quantity>_mean (lead_time, y, x) float32 in the quantity's units,
        probability_above_threshold (threshold, lead_time, y, x) float32 0..1, computed when it is read or written,
        for several members <quantity>_quantile (quantile, lead_time, y, x) float32, likewise,
        for rain rainfall_amount_1h (member, accumulation_lead_time, y, x) float32 mm, observed (y, x) uint8.
        NaN = not forecast. Floats carry eight bits of mantissa.
    """
    quantity, leads_s = context.quantity, _lead_seconds(forecast.dataset)
    field = forecast.dataset[quantity]
    values = bitround(field.values)
    described = dict(field.attrs)
    variables: Variables = {
        quantity: xr.Variable(("member", "lead_time", "y", "x"), values, {**described, **_PLACED}),
        f"{quantity}_mean": _mean(values, described, quantity),
        "probability_above_threshold": _probability(values, leads_s, described, domain, cell_size_m(field)),
        "observed": _observed(context),
    }
    if len(values) > 1:
        variables |= _quantiles(values, described, quantity, domain.product.quantiles)
    if quantity == "rainfall_rate":
        variables |= _hourly(values, domain.feed.cadence)
    return xr.Dataset(variables, _coordinates(forecast.dataset, domain, described), _attrs(forecast, context, domain))


def bitround(values: Fields) -> Fields:
    """Floats rounded to eight bits of mantissa, half to even, so that they compress; NaN and 0 stay themselves.

    References:
        Kloewer et al. (2021), doi:10.1038/s43588-021-00156-2.
    """
    drop = np.uint32(23 - _MANTISSA_BITS)
    below_half, kept = np.uint32((1 << (int(drop) - 1)) - 1), np.uint32(0xFFFFFFFF >> int(drop) << int(drop))
    rounded = np.array(values, np.float32, order="C")
    # A plane at a time: a continent's forecast is a gigabyte, and its temporaries would be several.
    for plane in rounded.reshape(-1, *rounded.shape[-2:]) if rounded.ndim > 2 else [rounded]:
        known, bits = np.isfinite(plane), plane.view(np.uint32)
        np.copyto(bits, (bits + ((bits >> drop) & np.uint32(1)) + below_half) & kept, where=known)
    return rounded


def _lead_seconds(forecast: xr.Dataset) -> list[float]:
    return [float(lead / np.timedelta64(1, "s")) for lead in forecast["lead_time"].values]


def _mean(values: Fields, described: dict[str, object], quantity: str) -> xr.Variable:
    if len(values) == 1:
        mean = values[0]
    elif quantity == "equivalent_reflectivity_factor":
        no_echo = float(str(described.get("no_echo", NO_ECHO)))
        mean = bitround(decibels(linear(values, no_echo).mean(axis=0), no_echo))
    else:
        mean = bitround(values.mean(axis=0, dtype=np.float64).astype(np.float32))
    attrs = {**described, **_PLACED, "cell_methods": "member: mean"}
    return xr.Variable(("lead_time", "y", "x"), mean, attrs)


def _probability(
    values: Fields, leads_s: list[float], described: dict[str, object], domain: Domain, cell_m: float
) -> xr.Variable:
    thresholds = domain.product.thresholds
    shape = (len(thresholds), 1, *values.shape[2:])

    def of_lead(lead: int) -> Fields:
        return exceedance(values[:, lead], thresholds, leads_s[lead], cell_m)[:, None]

    halves = ", ".join(f"{neighbourhood_half_width_m(lead) / 1000:g}" for lead in leads_s)
    method = (
        "share of the members"
        if len(values) > 1
        else f"share of the forecast cells in a square neighbourhood of half-width {halves} km by lead time, one member"
    )
    attrs = {
        "long_name": f"probability that the {str(described['long_name']).lower()} reaches the threshold",
        "units": "1",
        "grid_mapping": "spatial_ref",
        "comment": f"{method}; NaN where not forecast",
        "coordinates": "time init_time lat lon",
    }
    return xr.Variable(("threshold", "lead_time", "y", "x"), _by_lead(of_lead, shape, values.shape[1]), attrs)


def _quantiles(values: Fields, described: dict[str, object], quantity: str, shares: tuple[float, ...]) -> Variables:
    shape = (len(shares), 1, *values.shape[2:])

    def of_lead(lead: int) -> Fields:
        return bitround(member_quantiles(values[:, lead], shares))[:, None]

    attrs = {
        **described,
        **_PLACED,
        "long_name": f"quantile of the members' {str(described['long_name']).lower()}",
        "comment": "linear between members in order; NaN where not forecast",
    }
    named = {"standard_name": "quantile", "long_name": "share of the members below", "units": "1"}
    fields = _by_lead(of_lead, shape, values.shape[1])
    return {
        f"{quantity}_quantile": xr.Variable(("quantile", "lead_time", "y", "x"), fields, attrs),
        "quantile": xr.Variable(("quantile",), np.array(shares, np.float64), named),
    }


def _by_lead(of_lead: Callable[[int], Fields], shape: tuple[int, ...], leads: int) -> da.Array:
    """One block a lead, as it is written: 72 planes of a continent in float32 would take gigabytes."""
    from dask import delayed

    blocks = [da.from_delayed(delayed(of_lead, pure=False)(lead), shape, np.float32) for lead in range(leads)]
    return da.concatenate(blocks, axis=1)


def _hourly(values: Fields, cadence: timedelta) -> Variables:
    steps = _HOUR // cadence if _HOUR % cadence == timedelta(0) else 0
    hours = values.shape[1] // steps if steps else 0
    if hours == 0:
        return {}
    members, _, rows, columns = values.shape
    by_hour = values[:, : hours * steps].reshape(members, hours, steps, rows, columns)
    amount = bitround((by_hour.sum(axis=2, dtype=np.float64) * (cadence / _HOUR)).astype(np.float32))
    ends = np.arange(1, hours + 1) * np.timedelta64(_HOUR, "ns")
    attrs = {
        "standard_name": "thickness_of_rainfall_amount",
        "long_name": "Rain in the hour that ends at accumulation_lead_time",
        "units": "mm",
        "grid_mapping": "spatial_ref",
        "cell_methods": f"accumulation_lead_time: sum (interval: {cadence / timedelta(minutes=1):g} minutes)",
        "coordinates": "init_time lat lon",
    }
    lead_attrs = {**_LEAD, "long_name": "forecast period at the end of the hour"}
    return {
        "rainfall_amount_1h": xr.Variable(("member", "accumulation_lead_time", "y", "x"), amount, attrs),
        "accumulation_lead_time": xr.Variable(("accumulation_lead_time",), ends, lead_attrs),
    }


def _observed(context: Context) -> xr.Variable:
    attrs = {
        "long_name": "cells that the context observes",
        "flag_values": np.array([0, 1], np.uint8),
        "flag_meanings": "not_observed observed",
        "grid_mapping": "spatial_ref",
        "comment": "seen by the newest frame and by at least half of the context; nothing is forecast elsewhere",
        "coordinates": "lat lon",
    }
    return xr.Variable(("y", "x"), context.observed.values.astype(np.uint8), attrs)


_PLACED = {"coordinates": "time init_time lat lon"}
_LEAD = {"standard_name": "forecast_period", "long_name": "time since init_time"}


def _coordinates(forecast: xr.Dataset, domain: Domain, described: dict[str, object]) -> Variables:
    lat, lon = _degrees(
        str(forecast["spatial_ref"].attrs["crs_wkt"]), forecast["y"].values.tobytes(), forecast["x"].values.tobytes()
    )
    time = {"long_name": "time that a lead is valid for, end of interval", "standard_name": "time"}
    init = {"long_name": "time of the newest frame used", "standard_name": "forecast_reference_time"}
    member = {"standard_name": "realization", "long_name": "ensemble member"}
    above = {"long_name": f"threshold of the {str(described['long_name']).lower()}", "units": described["units"]}
    return {
        "member": xr.Variable(("member",), forecast["member"].values.astype(np.int32), member),
        "lead_time": xr.Variable(("lead_time",), forecast["lead_time"].values, _LEAD),
        "init_time": xr.Variable((), forecast["init_time"].values, init),
        "time": xr.Variable(("lead_time",), forecast["time"].values, time),
        "threshold": xr.Variable(("threshold",), np.array(domain.product.thresholds, np.float32), above),
        **{name: forecast[name].variable for name in ("y", "x", "spatial_ref")},
        "lat": lat,
        "lon": lon,
    }


@lru_cache(maxsize=8)
def _degrees(wkt: str, y: bytes, x: bytes) -> tuple[xr.Variable, xr.Variable]:
    """Latitude and longitude of a grid, kept: the projection of a million cells costs more than their forecast."""
    axes = grid_coordinates(pyproj.CRS.from_wkt(wkt), np.frombuffer(x), np.frombuffer(y))
    lat, lon = latlon(xr.Dataset(coords=axes))
    return lat.variable.astype(np.float32), lon.variable.astype(np.float32)


def _attrs(forecast: Forecast, context: Context, domain: Domain) -> dict[str, object]:
    steered = forecast.ensemble.intensity if forecast.ensemble else None
    what = "Nowcast" if steered is None else f"What-if ({intensity_in_words(steered)})"
    return {
        "Conventions": "CF-1.11",
        "title": f"{what} for {domain.title or domain.name}",
        "source": f"{forecast.model.name} {forecast.model.version}, rung {forecast.rung}",
        "license": context.licence,
        "domain": domain.name,
        **forecast.dataset.attrs,
        **({} if steered is None else {"comment": _WHAT_IF}),
    }


_WHAT_IF = (
    "no forecast: every member is steered so that its average intensity is average_intensity, where mu and sigma are "
    "the mean and spread that the context leads to expect"
)
