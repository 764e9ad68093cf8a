"""Custom nodes for jobs of known length and pictures of realistic size; copied to volumes.

Also serves at `/benchmark/waits` when ComfyUI waited for a prompt: between two queued prompts it is
not always idle, as every 10 s it collects garbage, half a second on a slow core.

Runs in ComfyUI's Python, so it imports nothing from the project.
"""

import gc
import hashlib
import time

# With this spectral slope a PNG of 1024² takes 1.5 MB, like SDXL's.
SLOPE = 1.5
_BASES = {}
_WAITS = []


class Work:
    """Returns a plain image after `seconds` of sleep, as a host waits for its GPU, or, with `burn`,
    of one core's time."""

    CATEGORY = "benchmark"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0, "max": 2**31}),
                "seconds": ("FLOAT", {"default": 1.0}),
                "size": ("INT", {"default": 64}),
            },
            "optional": {"burn": ("BOOLEAN", {"default": False})},
        }

    def run(self, seed, seconds, size, burn=False):
        import torch

        if burn:
            _burn(seconds)
        else:
            time.sleep(seconds)
        return (torch.full((1, size, size, 3), (seed % 256) / 255),)


class Pictures:
    """A batch of pictures that compress like generated ones, different for each seed."""

    CATEGORY = "benchmark"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0, "max": 2**31}),
                "size": ("INT", {"default": 1024}),
                "count": ("INT", {"default": 1}),
            }
        }

    def run(self, seed, size, count):
        import torch

        if size not in _BASES:
            _BASES[size] = _base(size)
            _freeze_objects()
        shifts = [(seed * 7 + 31 * i) % size for i in range(count)]
        return (torch.stack([_BASES[size].roll((s, 3 * s), (0, 1)) for s in shifts]),)


def _burn(seconds):
    """Use `seconds` of one core, by the thread's CPU clock and without holding the GIL."""
    block, end = bytes(1 << 20), time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(block)


def _base(size):
    """Luminance and a little colour, both with power that falls with frequency."""
    import torch

    dice = torch.Generator().manual_seed(1)
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    frequency = (down**2 + across**2).sqrt() * size
    frequency[0, 0] = 1

    def layer():
        parts = [torch.randn(frequency.shape, generator=dice) for _ in range(2)]
        spectrum = torch.complex(*parts) / frequency**SLOPE
        spectrum[0, 0] = 0
        field = torch.fft.irfft2(spectrum, s=(size, size))
        return field / field.std()

    light = layer()
    return torch.stack([0.5 + 0.2 * (light + 0.25 * layer()) for _ in range(3)], -1).clamp(0, 1)


def _freeze_objects():
    """Make later collections short. ComfyUI collects garbage after a prompt if the last time was
    10 s ago; that holds the GIL for half a second and could hit the same kind of job every time."""
    gc.collect()
    gc.freeze()


def _record_waits():
    """From now on. The queue's consumer calls `get` whenever it has nothing else to do."""
    import execution

    get = execution.PromptQueue.get

    def recorded(self, timeout=None):
        begun = time.time()
        try:
            return get(self, timeout)
        finally:
            _WAITS.append((begun, time.time()))

    execution.PromptQueue.get = recorded


def _serve_waits():
    import server
    from aiohttp import web

    @server.PromptServer.instance.routes.get("/benchmark/waits")
    async def waits(_):
        return web.json_response(_WAITS)


_record_waits()
_serve_waits()

NODE_CLASS_MAPPINGS = {"BenchmarkWork": Work, "BenchmarkPictures": Pictures}
