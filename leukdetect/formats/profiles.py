"""ICC profiles of colours that a file states otherwise: PNG's cICP, gAMA and cHRM, AVIF's nclx, BMP's embedded one.

Shown as Chromium does: cICP before a profile, a profile before sRGB, sRGB before gAMA and cHRM.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leukdetect.formats.errors import UnsupportedImage

_D65, _D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
_SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_FILM = (1, 6, 14, 15)
_PRIMARIES = {  # ITU-T H.273, table 2: red, green and blue in CIE 1931 xy, white, by code
    1: (_SRGB, _D65),
    2: (_SRGB, _D65),  # not stated
    5: ((0.64, 0.33, 0.29, 0.60, 0.15, 0.06), _D65),
    6: ((0.630, 0.340, 0.310, 0.595, 0.155, 0.070), _D65),
    9: ((0.708, 0.292, 0.170, 0.797, 0.131, 0.046), _D65),
    12: ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), _D65),
}
_CURVES: dict[int, tuple[float, ...]] = {  # table 3: (g), or (g, a, b, c, d) of ((a·x + b)^g from d on, else c·x)
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    **dict.fromkeys(_FILM, (2.4,)),  # a display's (ITU-R BT.1886), as browsers show it
}
_AS_IS = ((1, 13), (1, 2), (2, 13), (2, 2))  # sRGB, said or assumed
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def of_png(data: bytes, info: Mapping[Any, Any]) -> bytes | None:
    """The profile of a PNG whose chunks state its colours without one; None: sRGB, or it has one.

    Raises UnsupportedImage: its colours are of a high dynamic range.
    """
    if (codes := _cicp(data)) is not None:
        return of_codes(*codes)
    gamma = info.get("gamma")
    if "icc_profile" in info or "srgb" in info or not isinstance(gamma, float) or gamma <= 0:
        return None
    stated = info.get("chromaticity")
    if isinstance(stated, tuple) and len(stated) == 8 and all(stated):
        return _profile(stated[2:], stated[:2], (1 / gamma,))
    # 1/2.2 is what PNG has for sRGB's curve.
    return None if abs(gamma - 1 / 2.2) < 1e-4 else _profile(_SRGB, _D65, (1 / gamma,))


def of_codes(primaries: int, transfer: int) -> bytes | None:
    """The profile of ITU-T H.273's codes; None: sRGB.

    Raises UnsupportedImage: they are of a high dynamic range, or unknown.
    """
    if (primaries, transfer) in _AS_IS:
        return None
    if primaries not in _PRIMARIES or transfer not in (2, *_CURVES):
        raise UnsupportedImage(
            f"the image's colours are of another space (primaries {primaries}, transfer {transfer} of ITU-T H.273; "
            "16 and 18 are high dynamic range); export it as sRGB"
        )
    return _profile(*_PRIMARIES[primaries], _CURVES[13 if transfer == 2 else transfer])


def of_avif(data: bytes) -> bytes | None:
    """The profile of an AVIF's nclx box, as `of_codes`; of a film's curves browsers take sRGB's there."""
    at = data.find(b"colrnclx")
    if not 0 <= at <= len(data) - 12:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return of_codes(primaries, 13 if transfer in _FILM else transfer)


def of_bmp(data: bytes) -> bytes | None:
    """The profile that a BMP of version 5 embeds."""
    if len(data) < 138 or struct.unpack_from("<I", data, 14)[0] < 124 or data[70:74] != b"DEBM":
        return None
    start, size = struct.unpack_from("<II", data, 14 + 112)
    return data[14 + start : 14 + start + size]


def _cicp(data: bytes) -> tuple[int, int] | None:
    at = data.find(b"cICP", 0, max(0, data.find(b"IDAT")))
    chunk = data[at : at + 8]
    if at < 0 or data[at - 4 : at] != b"\0\0\0\4" or data[at + 8 : at + 12] != zlib.crc32(chunk).to_bytes(4):
        return None
    return chunk[4], chunk[5]


def _profile(primaries: Sequence[float], white: Sequence[float], curve: Sequence[float]) -> bytes:
    """An ICC profile, version 4, of three primaries, white (CIE 1931 xy) and a parametric curve.

    ICC.1:2022, 9.2 and 10.18; white is brought to D50 by Bradford's matrix, as the specification has it.
    """
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in np.reshape(primaries, (3, 2))]).T
    source = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    columns = columns * np.linalg.solve(columns, source)
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ source))
    adapted = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns
    text = "as the file states".encode("utf-16-be")
    described = b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(text), 28) + text
    parametric = b"para" + struct.pack(">IHH", 0, 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    tags = {b"desc": described, b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    tags |= {
        name: b"XYZ \0\0\0\0" + _fixed(column)
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), parametric)
    table, content, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = at + len(content)
    head = struct.pack(">I4xI", size, 0x04400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + _fixed(_D50)).ljust(128, b"\0") + table + content


def _fixed(values: Sequence[float] | np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)
