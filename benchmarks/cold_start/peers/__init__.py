"""The peers: our own code that takes the steps of other workers, in their order.

`on_first_job` is what people write around a ComfyUI on a volume. `image_first` follows
worker-comfyui 5.8: its src/start.sh (GPU check with torch, then ComfyUI in the background, then
the handler) and its handler.py (poll every 50 ms, socket, history, /view, base64).
"""
