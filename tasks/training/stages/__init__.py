"""PreDiff's trainings: autoencoder, latents, denoiser, alignment network, and what they come to together."""
