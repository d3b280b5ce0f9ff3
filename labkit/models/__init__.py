"""Load any causal language model, and walk its parts."""

from labkit.models.loading import bundled_folder, load, model_name

__all__ = ["bundled_folder", "load", "model_name"]
