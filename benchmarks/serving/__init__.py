"""Measures hot workers: shared by `busy_gpu`, `job_overhead`, `thousand_jobs` and `two_comfyuis`.

Each worker is a separate process with the real SDK in production mode, its own control plane and
its own ComfyUI on the CPU. ComfyUI's execution times are read from its history for all alike.
"""
