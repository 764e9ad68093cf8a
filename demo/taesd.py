"""A tiny autoencoder (TAESD) with seeded random weights, as real safetensors files.

Layer positions and shapes are those of `comfy/taesd/taesd.py`; ComfyUI's VAELoader offers "taesd"
when it finds both files in `vae_approx`.
"""

from __future__ import annotations

import array
import json
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDTH = 64
_SEED = 5
LATENT_CHANNELS = 4
SCALE = 0.18215  # of SD 1.5's latents
ENCODER, DECODER = "taesd_encoder.safetensors", "taesd_decoder.safetensors"


@dataclass(frozen=True)
class Convolution:
    """One convolution's place in the state dict and its shape.

    `gain` scales its random weights and `offset` is its bias; None for a layer without one.
    """

    name: str
    inputs: int
    outputs: int
    gain: float
    offset: float | None = 0.0


def encoder_layers() -> Iterator[Convolution]:
    """`Encoder()`: one block, then three halvings of the size, each followed by three blocks."""
    yield Convolution("0", 3, WIDTH, 1.0)
    yield from _block(1)
    for halving in (2, 6, 10):
        yield Convolution(str(halving), WIDTH, WIDTH, 1.0, None)
        for position in range(halving + 1, halving + 4):
            yield from _block(position)
    yield Convolution("14", WIDTH, LATENT_CHANNELS, 1.0)


def decoder_layers() -> Iterator[Convolution]:
    """`Decoder()`: three doublings of the size; its last layer is centred on mid-grey."""
    yield Convolution("1", LATENT_CHANNELS, WIDTH, 1.0)
    for first in (3, 8, 13):
        for position in range(first, first + 3):
            yield from _block(position)
        yield Convolution(str(first + 4), WIDTH, WIDTH, 1.0, None)
    yield from _block(18)
    yield Convolution("19", WIDTH, 3, 0.35, 0.5)


def _block(position: int) -> Iterator[Convolution]:
    """Three convolutions beside a skip connection; small, so that ten in a row stay in range."""
    for layer in (0, 2, 4):
        yield Convolution(f"{position}.conv.{layer}", WIDTH, WIDTH, 0.55)


def write_taesd(folder: Path) -> None:
    """Write both files into `folder`, always the same bytes."""
    source = random.Random(_SEED)
    for name, layers in ((ENCODER, encoder_layers()), (DECODER, decoder_layers())):
        write_safetensors(folder / name, _tensors(layers, source))


def write_whole_vae(path: Path) -> None:
    """The same autoencoder as one file, which VAELoader accepts in `vae/` under any name."""
    source = random.Random(_SEED)
    parts = (("taesd_encoder.", encoder_layers()), ("taesd_decoder.", decoder_layers()))
    tensors = [
        (prefix + name, shape, values)
        for prefix, layers in parts
        for name, shape, values in _tensors(layers, source)
    ]
    scales = {"vae_scale": SCALE, "vae_shift": 0.0}
    tensors += [(name, [], array.array("f", [value])) for name, value in scales.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, iter(tensors))


Tensor = tuple[str, list[int], "array.array[float]"]


def _tensors(layers: Iterator[Convolution], source: random.Random) -> Iterator[Tensor]:
    for layer in layers:
        fan_in = layer.inputs * 9
        # Uniform, with the variance that keeps the signal's scale through a ReLU (He).
        reach = layer.gain * (6.0 / fan_in) ** 0.5
        count = layer.outputs * fan_in
        weights = array.array("f", (source.uniform(-reach, reach) for _ in range(count)))
        yield f"{layer.name}.weight", [layer.outputs, layer.inputs, 3, 3], weights
        if layer.offset is not None:
            offsets = array.array("f", [layer.offset]) * layer.outputs
            yield f"{layer.name}.bias", [layer.outputs], offsets


def write_safetensors(path: Path, tensors: Iterator[Tensor]) -> None:
    """A float32 safetensors file: header length, JSON header, little-endian data."""
    header: dict[str, object] = {"__metadata__": {"made_by": "comfyui-volume-worker demo, random"}}
    data = bytearray()
    for name, shape, values in tensors:
        if sys.byteorder == "big":
            values.byteswap()
        begin = len(data)
        data += values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(data))
