"""The models of a workflow: on disk before it runs, in memory before ComfyUI opens them."""

# Modules, not names: the warm-up looks for models before what fetches them is loaded.
__all__ = ["on_demand", "prefetch"]
