"""How each preset's stages are trained: the published recipe for the published networks, a quick one for small ones.

References:
    Gao et al. (2023), PreDiff, arXiv:2307.10422: rates, decays, clipping and averages of `PUBLISHED`. Its batches of
    512 frames, 64 and 128 windows are gathered there over micro-batches and GPUs; here they are what one GPU holds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageRecipe:
    """One stage: see the fields of the same names of `StageConfig`."""

    batch_size: int
    learning_rate: float
    ema_decay: float
    gradient_clip: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.05
    floor: float = 0.01


@dataclass(frozen=True)
class Recipe:
    """All stages, and the discriminator's channels after its first layer."""

    autoencoder: StageRecipe
    denoiser: StageRecipe
    alignment: StageRecipe
    discriminator_width: int

    def stage(self, name: str) -> StageRecipe:
        """The recipe of autoencoder, denoiser or alignment."""
        return {"autoencoder": self.autoencoder, "denoiser": self.denoiser, "alignment": self.alignment}[name]


QUICK = Recipe(
    autoencoder=StageRecipe(batch_size=16, learning_rate=2e-3, ema_decay=0.995, gradient_clip=200.0),
    denoiser=StageRecipe(batch_size=24, learning_rate=1e-3, ema_decay=0.995),
    alignment=StageRecipe(batch_size=32, learning_rate=1e-3, ema_decay=0.99),
    discriminator_width=16,
)
PUBLISHED = Recipe(
    autoencoder=StageRecipe(batch_size=64, learning_rate=5e-6, ema_decay=0.9999, warmup=0.1, floor=1e-3),
    denoiser=StageRecipe(
        batch_size=16, learning_rate=1e-3, ema_decay=0.9999, weight_decay=0.01, warmup=0.1, floor=1e-3
    ),
    alignment=StageRecipe(
        batch_size=64, learning_rate=1e-3, ema_decay=0.9999, weight_decay=0.01, warmup=0.1, floor=1e-3
    ),
    discriminator_width=64,
)
_PUBLISHED_PRESETS = ("prediff/sevir-lr",)


def recipe_of(preset: str) -> Recipe:
    """How `prediff/preset` is trained."""
    return PUBLISHED if preset in _PUBLISHED_PRESETS else QUICK
