"""The Python that runs ComfyUI: what it lacks, and how it gets that."""
