"""Whole-frame scores of the video benchmarks (MovingMNIST, N-body): errors summed over a frame, SSIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FrameScores:
    """Errors of frames scaled to 0..1.

    Attributes:
        mse: Squared error summed over the cells of a frame, mean over frames.
        mae: Absolute error, likewise.
        ssim: Structural similarity, mean over frames.
    """

    mse: float
    mae: float
    ssim: float


def frame_scores(forecast: Array, observed: Array, data_range: float | None = None) -> FrameScores:
    """Scores of (sample, lead, y, x, channel) frames scaled to 0..1.

    Args:
        forecast: Forecast frames.
        observed: Same shape.
        data_range: Of the structural similarity; None = the larger range seen in the two arrays, as published.

    Raises:
        ValueError: shapes differ, or a frame is smaller than the 11 x 11 window.
    """
    if forecast.shape != observed.shape or forecast.ndim != 5:
        raise ValueError(f"expected two (sample, lead, y, x, channel) arrays; got {forecast.shape}, {observed.shape}")
    ours, theirs = (np.moveaxis(it, -1, 2).astype(np.float64) for it in (forecast, observed))
    cells = ours.shape[-2] * ours.shape[-1]
    if min(ours.shape[-2:]) < _WINDOW:
        raise ValueError(f"expected frames of at least {_WINDOW} x {_WINDOW} cells; got {ours.shape[-2:]}")
    error = ours - theirs
    spread = data_range if data_range is not None else max(float(np.ptp(ours)), float(np.ptp(theirs)))
    pairs = zip(ours.reshape(-1, *ours.shape[-2:]), theirs.reshape(-1, *theirs.shape[-2:]), strict=True)
    similarity = np.mean([structural_similarity(*pair, spread) for pair in pairs])
    return FrameScores(float((error**2).mean() * cells), float(np.abs(error).mean() * cells), float(similarity))


def structural_similarity(forecast: Array, observed: Array, data_range: float) -> float:
    """Mean structural similarity of two (y, x) frames over all cells; frames are mirrored beyond their border.

    References:
        Wang et al. (2004), doi:10.1109/TIP.2003.819861.
    """
    small, large = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_f, mean_o = _smooth(forecast), _smooth(observed)
    variance = np.maximum(_smooth(forecast**2) - mean_f**2, 0.0) + np.maximum(_smooth(observed**2) - mean_o**2, 0.0)
    covariance = _smooth(forecast * observed) - mean_f * mean_o
    luminance = (2 * mean_f * mean_o + small) / (mean_f**2 + mean_o**2 + small)
    return float(np.mean(luminance * (2 * covariance + large) / (variance + large)))


def _smooth(frame: Array) -> npt.NDArray[np.float64]:
    import cv2

    window = (_WINDOW, _WINDOW)
    smooth: npt.NDArray[np.float64] = cv2.GaussianBlur(frame, window, _SIGMA, borderType=cv2.BORDER_REFLECT_101)
    return smooth
