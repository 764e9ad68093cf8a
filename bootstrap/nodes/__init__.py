"""Wanted custom node packs on the volume: which they are, how they are had, which node is whose."""

# Modules, not names: a boot without a manifest needs nothing of downloads.
__all__ = ["cli", "installed", "manifest", "node_map", "pull"]
