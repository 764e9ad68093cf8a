"""A tiny VAE (TAESD's shape, seeded random weights) as real safetensors files, without torch.

It decodes to patterns, not pictures; it stands for a model that is visible to ComfyUI only through
the links the worker makes. Layers as in ComfyUI's `comfy/taesd/taesd.py`.
"""

from __future__ import annotations

import array
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

_WIDTH = 64
_LATENT = 4
Tensor = tuple[str, tuple[int, ...]]


def write_tiny_vae(folder: Path) -> None:
    """Write `taesd_encoder.safetensors` and `taesd_decoder.safetensors` (5 MB each)."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, tensors) in enumerate((("encoder", _encoder()), ("decoder", _decoder()))):
        _write(folder / f"taesd_{name}.safetensors", list(tensors), random.Random(seed))


def _encoder() -> Iterator[Tensor]:
    yield from _convolution("0", 3, _WIDTH)
    yield from _block(1)
    for first in (2, 6, 10):
        yield from _convolution(str(first), _WIDTH, _WIDTH, bias=False)
        for index in range(first + 1, first + 4):
            yield from _block(index)
    yield from _convolution("14", _WIDTH, _LATENT)


def _decoder() -> Iterator[Tensor]:
    yield from _convolution("1", _LATENT, _WIDTH)
    for first in (3, 8, 13):
        for index in range(first, first + 3):
            yield from _block(index)
        yield from _convolution(str(first + 4), _WIDTH, _WIDTH, bias=False)
    yield from _block(18)
    yield from _convolution("19", _WIDTH, 3)


def _block(index: int) -> Iterator[Tensor]:
    for layer in (0, 2, 4):
        yield from _convolution(f"{index}.conv.{layer}", _WIDTH, _WIDTH)


def _convolution(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Tensor]:
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    if bias:
        yield f"{name}.bias", (outputs,)


def _write(path: Path, tensors: list[Tensor], chance: random.Random) -> None:
    """The safetensors format: header length, JSON header, then the numbers, little-endian."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in tensors:
        size = 4 * _count(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, shape in tensors:
            numbers = _numbers(shape, chance)
            if sys.byteorder == "big":
                numbers.byteswap()
            numbers.tofile(file)


def _numbers(shape: tuple[int, ...], chance: random.Random) -> array.array[float]:
    """Uniform within ±1/sqrt(inputs of one output), which keeps activations in range."""
    reach = (3.0 / max(1, _count(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.05
    return array.array("f", (chance.uniform(-reach, reach) for _ in range(_count(shape))))


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
