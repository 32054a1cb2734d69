"""Small ICC profiles for tests, written by hand from ICC.1:2001-04."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# Columns red, green, blue of CIE XYZ, adapted to D50, as the profiles of that name have them.
ADOBE_RGB = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))


def of_screen(matrix: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """An RGB profile of a matrix and one gamma."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    columns = {
        f"{name}XYZ".encode(): _xyz(column) for name, column in zip("rgb", zip(*matrix, strict=True), strict=True)
    }
    return _profile(b"mntr", b"RGB ", b"XYZ ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def of_grey(gamma: float) -> bytes:
    """A grey profile of one gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))})


def of_printer() -> bytes:
    """A CMYK profile: inks darken and tint; a table with two points an ink, to CIELab."""
    nodes = []
    for number in range(16):
        cyan, magenta, yellow, black = (number >> shift & 1 for shift in (3, 2, 1, 0))
        light = (1 - 0.9 * black) * (1 - 0.35 * cyan) * (1 - 0.45 * magenta) * (1 - 0.08 * yellow)
        nodes += [255 * light, 128 - 30 * cyan + 60 * magenta - 5 * yellow, 128 - 40 * cyan + 75 * yellow]
    linear = bytes(range(256))
    table = b"mft1" + struct.pack(">IBBBB", 0, 4, 3, 2, 0)
    table += b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    table += linear * 4 + bytes(int(np.clip(node, 0, 255)) for node in nodes) + linear * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 2) + b"t\0" + bytes(79), b"wtpt": _xyz(D50), **tags}
    table, content, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = (
        struct.pack(">I4sI", at + len(content), b"lcms", 0x02400000) + device + space + connection + bytes(12) + b"acsp"
    )
    return head.ljust(68, b"\0") + _xyz(D50)[8:] + bytes(48) + table + content
