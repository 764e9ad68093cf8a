"""The models of a workflow: there before it runs, and in memory before ComfyUI asks for them."""

# Modules, not names: the warm-up looks for models before what fetches them is loaded.
__all__ = ["on_demand", "prefetch"]
