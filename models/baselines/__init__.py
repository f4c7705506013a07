"""Forecasts that need no training: the bar every model has to clear."""

from __future__ import annotations


class ContextTooShort(ValueError):
    """The context holds fewer observed frames than a forecaster needs."""
