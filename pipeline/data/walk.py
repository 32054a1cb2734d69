"""Walks a folder for its images, each folder once; whatever is left out is counted by reason.

An image is known by its name or, whatever the name, by its first bytes. One that is named so and broken is listed too:
whoever reads it judges.
"""

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from leukdetect.formats import kinds
from pipeline.stage import Problem

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"}
HEAD = 256  # bytes that tell an image from everything else
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # JPEG, PNG, TIFF, BigTIFF

# What file servers and systems put into folders, in lower case.
DELETED, COPIES, OWN = "deleted files", "earlier states of files", "files of the system's own"
LITTER = {
    **dict.fromkeys(("#recycle", "@recycle", "$recycle.bin", "recycler", "recycled", ".recycle"), DELETED),
    **dict.fromkeys((".trash", ".trashes", "network trash folder"), DELETED),
    **dict.fromkeys(("@eadir", ".@__thumb", ".thumbnails"), "thumbnails and indexes"),
    **dict.fromkeys(("#snapshot", "@snapshot", "~snapshot", ".snapshot", ".snapshots", ".zfs"), COPIES),
    **dict.fromkeys(("@recently-snapshot", ".stversions"), COPIES),
    **dict.fromkeys(("system volume information", "lost+found", "__macosx", "@tmp", "temporary items"), OWN),
    **dict.fromkeys(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"), OWN),
}


def image_files(tree: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Yields a folder's images in a fixed order, and counts in `left_out` what it passes over, by reason.

    Real folders come before those that links lead to, so that a folder keeps its own name where a link leads to it too.

    Raises Problem: a folder cannot be read, or an image's name is not UTF-8.
    """
    seen: set[tuple[int, int]] = set()
    queue: deque[tuple[Path, str | None]] = deque([(tree, None)])  # folders, and why nothing in one is wanted
    while queue:
        folder, unwanted = queue.popleft()
        try:
            found = folder.stat()
            if (found.st_dev, found.st_ino) in seen:
                left_out["folders that have another name too, by which they were walked"] += 1
                continue
            seen.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if unwanted:
                left_out[unwanted] += 1
                continue
            raise Problem(f"{shown(folder)} cannot be read ({error.strerror})") from error
        below: list[tuple[Path, str | None]] = []
        for entry in inside:
            path, kind = Path(entry.path), _kind(entry)
            if kind == "folder":
                why = unwanted or unwanted_folder(entry.name)
                if not entry.is_symlink():
                    below.append((path, why))
                elif not why:
                    queue.append((path, None))
            elif why := unwanted or litter(entry.name) or _no_image(entry, kind):
                left_out[why] += 1
            else:
                yield _utf8(path, tree)
        queue.extendleft(reversed(below))


def litter(name: str) -> str | None:
    """Why a file or folder of this name is left out; None: it is not."""
    plain = name.casefold()
    if plain.startswith(".trash-"):  # Linux adds the user's number
        return DELETED
    return LITTER.get(plain) or ("hidden files" if plain.startswith(".") else None)


def unwanted_folder(name: str) -> str | None:
    """As `litter`, of a folder, which the reason names."""
    why = litter(name)
    return why and f"{why}, in {shown(name)}"


def is_named_so(name: str) -> bool:
    """Whether a name says that it is an image's."""
    return Path(name).suffix.lower() in EXTENSIONS


def no_image(head: bytes, name: str) -> str | None:
    """Why a file with these first `HEAD` bytes is left out; None: it is an image of a format that is read."""
    if head[:2] == b"BM":  # two letters begin many a text: zeros, and the size of one of BMP's headers, follow
        if head[6:10] == bytes(4) and head[14:18] in [bytes((size, 0, 0, 0)) for size in (12, 40, 52, 56, 108, 124)]:
            return None
    elif head.startswith(STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    if known := kinds.named(head):
        return None if known[0] == "AVIF" else f"files that are not decoded, {known[0]}: {known[1]}"
    return of_another_kind(name)


def of_another_kind(name: str) -> str:
    """The reason for a file that is no image, by its name's end."""
    return f"files that are no image (*{Path(name).suffix.lower() or ' without extension'})"


def read(path: str | Path, most: int) -> bytes:
    """The first `most` bytes of a regular file.

    Raises OSError: it cannot be read, or is a pipe, a socket or a device, where reading might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or opening a pipe would wait for whoever writes to it
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "It is no file, but a folder, a pipe, a socket or a device")
        return file.read(most)


def lines(left_out: Mapping[str, int]) -> str:
    """A line for each reason, each after a line's end."""
    return "".join(f"\nleft out: {count:,} {why}" for why, count in sorted(left_out.items()))


def but(left_out: Mapping[str, int]) -> str:
    """What was left out, for the message that nothing was found."""
    found = "; ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    return f" (left out: {found})" if found else ""


def shown(path: Path | str) -> str:
    """A path for messages: what is not UTF-8 in it as \\x.."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "nothing", "other"]:
    """What an entry is, or what its link leads to."""
    with suppress(OSError):  # a link that leads back to itself
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if Path(entry.path).exists():
            return "other"
    return "nothing"


def _no_image(entry: os.DirEntry[str], kind: str) -> str | None:
    """Why an entry that is no folder is left out; None: it is listed."""
    if kind == "other":
        return "pipes, sockets and devices"
    if is_named_so(entry.name):
        return None
    if kind == "nothing":
        return "links that lead nowhere"
    try:
        return no_image(read(entry.path, HEAD), entry.name)
    except OSError:
        return "files that cannot be read"


def _utf8(path: Path, tree: Path) -> Path:
    try:
        str(path.relative_to(tree)).encode()
    except UnicodeEncodeError as error:
        raise Problem(
            f"the name of {shown(path)} is not UTF-8, so no table can hold it. Rename it, or the whole folder's: "
            f"`convmv -f cp1252 -t utf8 -r --notest {shown(tree)}`"
        ) from error
    return path
