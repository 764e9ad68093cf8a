"""The demo volume with a real ComfyUI, and the demo that runs on it. Standard library only."""
