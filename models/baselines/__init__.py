"""Forecasts that need no training: the bar every model has to clear."""
