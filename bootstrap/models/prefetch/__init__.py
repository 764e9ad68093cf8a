"""Weights read into the page cache before ComfyUI asks for them, and which those are."""

from bootstrap.models.prefetch.prefetch import ReadAhead, Request, memory_for_weights
from bootstrap.models.prefetch.recent import Recent

__all__ = ["ReadAhead", "Recent", "Request", "memory_for_weights"]
