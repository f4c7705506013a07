"""Earthformer: space-time transformer over cuboids with global vectors (Gao et al. 2022, arXiv:2207.05833)."""
