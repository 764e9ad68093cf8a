"""The Python that runs ComfyUI: which one, and how it starts at local speed."""
