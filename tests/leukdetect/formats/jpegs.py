"""A JPEG encoder for what Pillow does not write: any sampling. Every block is flat (ITU-T T.81, baseline)."""

import struct
from collections.abc import Sequence

import numpy as np


def flat_blocks(width: int, height: int, samplings: Sequence[tuple[int, int]], seed: int = 0) -> bytes:
    """A colour JPEG of random flat blocks; `samplings` are the horizontal and vertical factors of Y, Cb and Cr."""
    random = np.random.default_rng(seed)
    most = [max(each[side] for each in samplings) for side in (0, 1)]
    units = -(-width // (8 * most[0])) * -(-height // (8 * most[1]))
    bits: list[str] = []
    last = [0, 0, 0]
    for _ in range(units):
        for component, (across, down) in enumerate(samplings):
            for _ in range(across * down):
                level = int(random.integers(-100, 101))  # of samples, from 128 on; the table divides by 8
                bits.append(_dc(level - last[component]) + "0")  # then the end of the block
                last[component] = level
    text = "".join(bits)
    coded = int(text + "1" * (-len(text) % 8), 2).to_bytes((len(text) + 7) // 8).replace(b"\xff", b"\xff\0")
    components = b"".join(bytes((n + 1, h << 4 | v, 0)) for n, (h, v) in enumerate(samplings))
    return (
        b"\xff\xd8"
        + _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
        + _segment(0xDB, b"\0" + b"\x08" * 64)
        + _segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + components)
        + _segment(0xC4, b"\x00" + bytes([0] * 3 + [12] + [0] * 12) + bytes(range(12)))  # DC: sizes, 4 bits each
        + _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0")  # AC: "0" ends the block
        + _segment(0xDA, b"\3" + b"".join(bytes((n, 0)) for n in (1, 2, 3)) + b"\0\x3f\0")
        + coded
        + b"\xff\xd9"
    )


def _dc(difference: int) -> str:
    size = abs(difference).bit_length()
    if not size:
        return "0000"
    return f"{size:04b}" + f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content
