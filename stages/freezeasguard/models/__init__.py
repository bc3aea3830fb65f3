"""The latent diffusion model: its parts, its loss, its sampler, its encoded images, and what of it is protected."""
