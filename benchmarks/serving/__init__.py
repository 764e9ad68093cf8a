"""Hot workers measured: what `busy_gpu`, `job_overhead` and `thousand_jobs` have in common.

Every worker is a process of its own with the real SDK in production mode, at a control plane of
its own, and has a ComfyUI of its own on the CPU. What ComfyUI's execution took is read from
ComfyUI's history, for everybody alike.
"""
