"""A workflow's models: on disk before it runs, in memory before ComfyUI opens them."""

# Modules, not names: the warm-up finds models before the code that fetches them is loaded.
__all__ = ["on_demand", "prefetch"]
