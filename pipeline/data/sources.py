"""The four sources of images. Each function brings one onto this disk and returns the folder to look in.

Downloads stay below `.state/fetch`, so that an interrupted one is resumed.
"""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import suppress
from math import ceil
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import requests
import urllib3

from pipeline import stage
from pipeline.data.smears import write_demo
from pipeline.params import Params
from pipeline.stage import Problem

STATE = stage.STATE / "fetch"
CHUNK = 1_000_000  # bytes; the progress bar counts them as MB
TIMEOUT = (10, 60)  # s, to connect and between two chunks
DAMAGE = (  # what unpacking a damaged archive raises, besides OSError
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,  # a name that no file can have
    RuntimeError,  # a password, or a compression that Python does not know
)
UTF8_FLAG = 0x800  # of a zip's member: its name is UTF-8
FREE_SHARE = 0.9  # of the free disk that an archive may unpack to; the rest is for everybody else


class Fetched(NamedTuple):
    """A folder with images somewhere below it."""

    folder: Path
    version: str | None = None
    archive_sha256: str | None = None


def demo(recipe: Params, work: Path) -> Fetched:
    """Renders the synthetic demo into `work`."""
    write_demo(work, seed=recipe.seed, **recipe.demo.model_dump())
    return Fetched(work)


def folder(recipe: Params, work: Path) -> Fetched:
    """Uses a folder of the user's, which may be read-only. Raises Problem if there is no such folder."""
    assert recipe.fetch.folder  # sections.Fetch sees to it
    path = Path(recipe.fetch.folder).expanduser()
    if not path.is_dir():
        raise Problem(f"fetch.folder: {path} is no folder. Give one with a subfolder for each class.")
    return Fetched(path)


def kaggle(recipe: Params, work: Path) -> Fetched:
    """Downloads a public data set by its handle, without credentials, or any other with them.

    Raises Problem if the handle is wrong, Kaggle cannot be reached, wants credentials or sends no archive.
    """
    os.environ.setdefault("KAGGLEHUB_CACHE", str(STATE / "kaggle"))
    import kagglehub  # here, since it takes a second that the other sources do without
    from kagglehub.exceptions import DataCorruptionError
    from kagglehub.handle import parse_dataset_handle

    name = recipe.fetch.kaggle
    assert name  # sections.Fetch sees to it
    by_hand = "download it by hand, unpack it, and use fetch.source: folder with the folder in fetch.folder"
    try:
        handle = parse_dataset_handle(name)
    except ValueError as error:
        raise Problem(f"fetch.kaggle: {name!r} is no handle; write owner/name, as in its page's address.") from error
    try:
        path = Path(kagglehub.dataset_download(name))
    except requests.HTTPError as error:
        match error.response.status_code:
            case 404:
                problem = f"Kaggle has no data set {name} (404). Check fetch.kaggle."
            case 401 | 403 as status:
                problem = (
                    f"Kaggle wants credentials for {name} ({status}). Make a token on kaggle.com under Settings → API "
                    "and put it in the environment as KAGGLE_API_TOKEN, or as KAGGLE_USERNAME and KAGGLE_KEY. If the "
                    f"data set should be public, check fetch.kaggle, or {by_hand}."
                )
            case status:
                problem = f"Kaggle answered {status} for {name}. Try again later, or {by_hand}."
        raise Problem(problem) from error
    except requests.RequestException as error:
        raise _lost(f"Kaggle's data set {name}", error, by_hand) from error
    except (*DAMAGE, DataCorruptionError) as error:
        # Else kagglehub would find the broken download complete, and fail to unpack it for ever.
        for broken in Path(os.environ["KAGGLEHUB_CACHE"], "datasets", handle.owner, handle.dataset).glob("*.archive"):
            broken.unlink()
        raise Problem(
            f"Kaggle's answer for {name} cannot be used ({error}). What was downloaded has been removed: run it again, "
            f"or {by_hand}."
        ) from error
    # Its cache's own layout: datasets/owner/name/versions/3.
    return Fetched(path, version=path.name if path.parent.name == "versions" else None)


def archive(recipe: Params, work: Path) -> Fetched:
    """Unpacks a .zip or .tar(.gz, .bz2, .xz), from a URL or this disk, into `work` once its SHA-256 is right.

    Raises Problem if it cannot be had, has another checksum, or is refused by `unpack`.
    """
    address, expected = recipe.fetch.archive, recipe.fetch.sha256
    assert address  # sections.Fetch sees to both
    assert expected
    remote = address.lower().startswith(("http://", "https://"))
    kept = STATE / expected  # where an earlier run left its download
    path = kept if remote else Path(address).expanduser()
    if remote and not kept.exists():
        path = STATE / f"{expected}.part"
        _download(address, path)
    if not path.is_file():
        raise Problem(f"fetch.archive: {address} is no file, and no http(s) address either.")
    if (actual := stage.sha256(path)) != expected:
        what_now = "The file was left as it is."
        if remote:
            path.unlink()
            what_now = "The download was removed; run it again to download it anew."
        raise Problem(
            f"{address} is not the archive that fetch.sha256 names, so it was not unpacked.\n"
            f"  expected {expected}\n  actual   {actual}\n{what_now} If the archive is right, correct fetch.sha256."
        )
    if remote:
        path = path.replace(kept)
    _unpack(path, work, address)
    return Fetched(work, archive_sha256=expected)


BY_NAME = {"demo": demo, "kaggle": kaggle, "archive": archive, "folder": folder}  # as fetch.source has them


def _unpack(path: Path, folder: Path, name: str) -> None:
    """Unpacks an archive, called `name` in messages, into an existing folder; the caller clears up after an error.

    Raises Problem if it is damaged or of an unknown kind, would fill the disk, or has a member that is a link or a
    device or that would land outside the folder.
    """
    room = int(shutil.disk_usage(folder).free * FREE_SHARE)

    def check(member: str, plain: bool, size: int) -> None:
        nonlocal room
        as_path = PureWindowsPath(member)  # takes / and \ as separators, so it refuses what any system would follow
        if as_path.anchor or ".." in as_path.parts:
            raise Problem(f"{name} is not safe: its member {member!r} would be written outside the folder.")
        if not plain:
            raise Problem(f"{name} is not safe: its member {member!r} is a link or a device, not a file or a folder.")
        room -= size
        if room < 0:
            raise Problem(f"{name} would fill the disk: it unpacks beyond what is free (at {member!r}). Free some.")

    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                # Against what `check` does not know; Python before 3.11.4, such as Debian 12's, has none.
                tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
                for member in stage.progress(tar, "unpacking", unit="file"):
                    check(member.name, member.isreg() or member.isdir(), member.size)
                    tar.extract(member, folder)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for entry in stage.progress(zipped.infolist(), "unpacking", unit="file"):
                    entry.filename = _as_named(entry)
                    kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the packer wrote no Unix mode
                    check(entry.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), entry.file_size)
                    zipped.extract(entry, folder)
        else:
            raise Problem(f"{name} is neither a zip nor a tar archive.")
    except (*DAMAGE, OSError) as error:  # OSError: gzip, bzip2, and two members that are file and folder of one name
        if stage.is_full_disk(error):
            raise
        raise Problem(f"{name} cannot be unpacked ({error}). Make or download it again.") from error


def _as_named(entry: zipfile.ZipInfo) -> str:
    """A member's name as its packer meant it: Windows's may have backslashes, macOS's are UTF-8 and do not say so."""
    name = entry.filename
    if not entry.flag_bits & UTF8_FLAG:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()  # Python took it for MS-DOS's code page, as the format has it
    return name.replace("\\", "/")


def _download(url: str, part: Path) -> None:
    """Downloads what `part` lacks of the file; the whole file where the server does not resume."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    by_hand = "download the file by hand and give its path in fetch.archive"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # all of it is here already, or too much: the checksum tells
            response.raise_for_status()
            size = response.headers.get("Content-Length")
            # Raw, since some servers declare a .tar.gz as gzip-encoded, and requests would unpack it: another checksum.
            chunks = response.raw.stream(CHUNK, decode_content=False)
            total = ceil(int(size) / CHUNK) if size else None
            with part.open("ab" if response.status_code == requests.codes.partial_content else "wb") as file:
                for chunk in stage.progress(chunks, "downloading", total=total, unit="MB"):
                    file.write(chunk)
    except requests.HTTPError as error:
        answer = f"{error.response.status_code} ({error.response.reason})"
        raise Problem(f"{url} answered {answer}. Check fetch.archive, or {by_hand}.") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _lost(url, error, by_hand) from error


def _lost(what: str, error: BaseException, by_hand: str) -> Problem:
    """Names the innermost error, such as "Connection refused", and not what requests and urllib3 wrapped around it."""
    while error.__context__:
        error = error.__context__
    return Problem(
        f"{what} could not be reached, or the connection was lost ({getattr(error, 'strerror', None) or error}). What "
        "has arrived is kept, and the next run goes on from there. Check the network and the proxy (HTTPS_PROXY), and "
        f"run it again; or {by_hand}."
    )
