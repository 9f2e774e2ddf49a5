"""A small image as a PNG in a ``data:`` address."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

from snnkit.network.ir import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def data_uri(content: bytes) -> str:
    """The bytes of a PNG file as an address."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def encode(pixels: Array) -> bytes:
    """uint8 [H, W] (grey) or [H, W, 3] (RGB) as a PNG file (W3C PNG, third edition: 8 bits, no filter)."""
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes(), 9), b"IEND": b""}
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def picture(sample: Array) -> str:
    """A raw sample as an image: [C, H, W] in 0..1, events [T, C, H, W] summed over time, or a flat [N] as one row.

    Three channels are red, green and blue; other numbers are averaged to grey, against the brightest.
    """
    x = sample.astype(np.float64)
    if x.ndim in (2, 4):  # events
        x = x.sum(axis=0)
    if x.ndim == 1:
        x = x[None, None]
    x = np.moveaxis(x, 0, -1) if x.shape[0] == 3 else x.mean(axis=0)
    x = x / max(1.0, float(x.max())) if sample.dtype.kind == "f" else x / max(1e-9, float(x.max()))
    return data_uri(encode(np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)))


def embed(path: Path) -> str | None:
    """A PNG file as an address; None for a file that is no PNG."""
    content = path.read_bytes()
    return data_uri(content) if content.startswith(SIGNATURE) else None
