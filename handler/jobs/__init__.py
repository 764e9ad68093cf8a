"""Jobs by type, from the SDK's dict to the reply, behind one error boundary."""

# Modules, not names: `warmup` is needed before ComfyUI starts, `worker` while it does.
__all__ = ["warmup", "worker"]
