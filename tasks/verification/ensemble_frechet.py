"""Fréchet distance between the features of observed and forecast clips: the arithmetic of FVD and FID.

Unterthiner et al. (2018), arXiv:1812.01717 (FVD); Heusel et al. (2017), arXiv:1706.08500; Dowson & Landau (1982),
doi:10.1016/0047-259X(82)90077-X. Moments add up in float64, so that clips can come in any number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.verification.scores import Sums


@dataclass(frozen=True)
class FeatureMoments:
    """Sums over clips.

    Attributes:
        count: Clips.
        total: Sum of the features, float64 (feature,).
        products: Sum of their outer products, float64 (feature, feature).
    """

    count: int
    total: Sums
    products: Sums

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        return FeatureMoments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Sums:
        """(feature,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Sums:
        """Unbiased, (feature, feature).

        Raises:
            ValueError: fewer than two clips.
        """
        if self.count < 2:
            raise ValueError(f"expected at least 2 clips for a covariance; got {self.count}")
        return (self.products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def feature_moments(features: Sums) -> FeatureMoments:
    """Moments of (clip, feature) features."""
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite features (clip, feature); got {values.shape}")
    return FeatureMoments(len(values), values.sum(axis=0), values.T @ values)


def frechet_distance(one: FeatureMoments, other: FeatureMoments) -> float:
    """Squared Fréchet distance of two normal distributions: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    The trace of the root is the sum of the roots of the eigenvalues of C1 C2, which are real and not negative but for
    rounding. Fewer clips than features leave the covariances singular: the distance is then large and biased.

    Raises:
        ValueError: other features, or fewer than two clips on a side.
    """
    if one.total.shape != other.total.shape:
        raise ValueError(f"expected as many features on both sides; got {one.total.shape} and {other.total.shape}")
    first, second = one.covariance, other.covariance
    eigenvalues = np.linalg.eigvals(first @ second).astype(np.complex128)
    root = float(np.sqrt(eigenvalues).real.sum())
    shift = float(((one.mean - other.mean) ** 2).sum())
    return shift + float(np.trace(first) + np.trace(second)) - 2.0 * root
