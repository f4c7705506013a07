"""PreDiff (Gao et al. 2023, arXiv:2307.10422): latent diffusion nowcasts with knowledge alignment."""
