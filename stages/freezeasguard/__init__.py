"""FreezeAsGuard: learn which tensors of a diffusion model to freeze against illegal adaptation."""

__version__ = "0.1.0"
