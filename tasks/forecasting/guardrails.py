"""What a forecast must keep before anyone sees it: known where it should be, physical, and not dry where it rained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.feeds.frames import QUANTITIES
from tasks.forecasting.availability import WET
from tasks.forecasting.context import Context

Fields = NDArray[np.float32]

# Share of the observed cells that the first lead has to forecast; advection legitimately loses some at the edges.
_KNOWN = 0.5
# A context with this share of wet cells must leave this share of its wet area at the first lead.
_RAINED, _KEPT = 0.005, 0.1
# Members of an ensemble have to differ somewhere by more than this, where it rains [the quantity's units].
_SAME = 1e-3
# Share of an ensemble's cells that a sampler may draw beyond the physical; more is a broken network.
_OVERSHOT = 1e-5
# Rounding of a network's output transform may go this far below zero; it is clipped.
_ROUNDING = 1e-3


class GuardrailTripped(ValueError):
    """A forecast breaks a guardrail; the message names it, what was found and the limit."""


@dataclass(frozen=True)
class Guardrail:
    """One check that a forecast kept.

    Attributes:
        name: Of the check.
        found: What was measured.
        limit: What it was held against.
    """

    name: str
    found: float
    limit: float


def guard(values: Fields, context: Context, intensity: float | None = None) -> tuple[Guardrail, ...]:
    """Hold `values` (member, lead_time, y, x) in the context's quantity to every guardrail.

    Each member has to be known and the members together, on average, have to keep the rain; members that are all the
    same would claim a certainty that nobody has. A what-if below the expected `intensity` may dry the forecast.

    Raises:
        GuardrailTripped: at the first that is broken.
    """
    drought = intensity is not None and intensity < 0
    kept = tuple(check(values, context) for check in _CHECKS)
    return (*kept, _not_dried(values, context, 0.0 if drought else _KEPT), *_differing(values, context))


def limit_overshoot(values: Fields, context: Context) -> Guardrail:
    """Give the few cells of an ensemble that lie above the quantity's ceiling that ceiling, in place; their share.

    A sampler's tails are long: one cell of a million must not cost the ensemble. Values of one member, infinite ones,
    and more than one cell in 100 000 are left to `guard`.
    """
    ceiling = QUANTITIES[context.quantity].ceiling
    above = np.isfinite(values) & (values > ceiling)
    share = float(above.mean())
    if len(values) > 1 and share <= _OVERSHOT:
        values[above] = ceiling
    return Guardrail("overshot_share", share, _OVERSHOT)


def _kept(name: str, found: float, limit: float, *, above: bool) -> Guardrail:
    if not (found >= limit if above else found <= limit):
        raise GuardrailTripped(f"{name}: expected {'at least' if above else 'at most'} {limit:g}; got {found:g}")
    return Guardrail(name, round(float(found), 6), float(limit))


def _finite(values: Fields, context: Context) -> Guardrail:
    return _kept("infinite_cells", float(np.isinf(values).sum()), 0.0, above=False)


def _known(values: Fields, context: Context) -> Guardrail:
    observed = context.observed.values
    share = np.isfinite(values[:, 0][:, observed]).mean(axis=1).min() if observed.any() else 0.0
    return _kept("known_share_of_observed", float(share), _KNOWN, above=True)


def _floor(values: Fields, context: Context) -> Guardrail:
    if context.quantity == "equivalent_reflectivity_factor":
        lowest = float(context.frames.attrs.get("no_echo", -100.0))
        return _kept("minimum", float(np.nanmin(values)), min(lowest, 0.0) - _ROUNDING, above=True)
    return _kept("minimum", float(np.nanmin(values)), -_ROUNDING, above=True)


def _ceiling(values: Fields, context: Context) -> Guardrail:
    return _kept("maximum", float(np.nanmax(values)), QUANTITIES[context.quantity].ceiling, above=False)


def _not_dried(values: Fields, context: Context, limit: float) -> Guardrail:
    """Wet area of the first lead, on average over the members, relative to the newest frame's over the same cells."""
    threshold, observed = WET[context.quantity], context.observed.values
    newest, first = context.frames.values[-1], values[:, 0]
    rained = float((newest[observed] >= threshold).mean()) if observed.any() else 0.0
    known = observed & np.isfinite(first).all(axis=0)
    rains = float((first[:, known] >= threshold).mean()) if known.any() else 0.0
    if rained < _RAINED:
        return Guardrail("wet_area_kept", 1.0, limit)
    return _kept("wet_area_kept", rains / rained, limit, above=True)


def _differing(values: Fields, context: Context) -> tuple[Guardrail, ...]:
    """Largest difference between members at the last lead; no check of a dry ensemble, nor of one member."""
    if len(values) == 1:
        return ()
    last = values[:, -1][:, np.isfinite(values[:, -1]).all(axis=0)]
    if not (last >= WET[context.quantity]).any():
        return ()
    return (_kept("largest_member_difference", float(np.ptp(last, axis=0).max()), _SAME, above=True),)


_CHECKS: tuple[Callable[[Fields, Context], Guardrail], ...] = (_finite, _known, _floor, _ceiling)
