"""Custom nodes for jobs of a known length and pictures of a real one's size; laid on volumes.

Also tells at `/benchmark/waits` when ComfyUI waited for a prompt: between two prompts of its queue
it is not always idle, every 10 s it collects garbage, which takes half a second of a slow core.

Runs in ComfyUI's Python, so it imports nothing of the project.
"""

import gc
import hashlib
import time

# At this slope of the spectrum a PNG of 1024² takes 1.5 MB, as those of SDXL do.
SLOPE = 1.5
_BASES = {}
_WAITS = []


class Work:
    """Gives a plain image after `seconds`. It sleeps, as a host does while its GPU works, or with
    `burn` takes that much time of one core."""

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
    """A batch of pictures that compress as generated ones do, other ones for each seed."""

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
            _collect_little_from_now_on()
        shifts = [(seed * 7 + 31 * i) % size for i in range(count)]
        return (torch.stack([_BASES[size].roll((s, 3 * s), (0, 1)) for s in shifts]),)


def _burn(seconds):
    """Take `seconds` of one core, by the thread's own clock and without Python's lock."""
    block, end = bytes(1 << 20), time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(block)


def _base(size):
    """Luminance and a little colour, both with a power that falls with the frequency."""
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


def _collect_little_from_now_on():
    """ComfyUI collects garbage after a prompt when the last time is 10 s ago. That holds Python's
    lock for half a second, and would fall on the same one of several kinds of jobs each round."""
    gc.collect()
    gc.freeze()


def _note_waits():
    """From here on. The queue's consumer calls `get` whenever it has nothing else to do."""
    import execution

    get = execution.PromptQueue.get

    def noted(self, timeout=None):
        begun = time.time()
        try:
            return get(self, timeout)
        finally:
            _WAITS.append((begun, time.time()))

    execution.PromptQueue.get = noted


def _tell_waits():
    import server
    from aiohttp import web

    @server.PromptServer.instance.routes.get("/benchmark/waits")
    async def waits(_):
        return web.json_response(_WAITS)


_note_waits()
_tell_waits()

NODE_CLASS_MAPPINGS = {"BenchmarkWork": Work, "BenchmarkPictures": Pictures}
