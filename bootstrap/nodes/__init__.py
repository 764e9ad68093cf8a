"""Custom node packs by manifest: which they are, how they are fetched, which pack has a node."""

# Modules, not names: a boot without a manifest must not load what downloads need.
__all__ = ["cli", "manifest", "node_map", "presence", "pull"]
