"""Lists and reads images in a folder, a list of paths or an object store, without ever holding a whole list in memory.

An object store's address and credentials are what the AWS tools read: AWS_ENDPOINT_URL, AWS_PROFILE, and so on.
"""

import csv
import errno
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.stage import Problem

# By name, not by content: a broken image is listed too, and whoever reads it judges.
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
S3 = "s3://"


def image_files(tree: Path) -> Iterator[Path]:
    """Yields the files with an image's extension in a fixed order, without hidden ones and macOS's twins of them.

    Raises Problem if a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise Problem(f"{error.filename} cannot be read ({error.strerror})") from error

    for name, folders, files in os.walk(tree, followlinks=True, onerror=unreadable):
        here = Path(name)
        # A link to a folder is followed, but not one that leads back to where we came from.
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith((".", "__MACOSX")) and not here.resolve().is_relative_to((here / f).resolve())
        )
        yield from (here / f for f in sorted(files) if _is_image(f))


def objects(prefix: str) -> Iterator[str]:
    """Yields the addresses s3://bucket/key of the images below s3://bucket/prefix, in the store's order.

    Raises Problem if it cannot be listed.
    """
    bucket, _, key = prefix.removeprefix(S3).partition("/")
    page: dict[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:  # a thousand a page: s3fs's own listings hold all of them
        token = page["NextContinuationToken"]
        more = {"ContinuationToken": token} if token else {}
        try:
            page = _s3().call_s3("list_objects_v2", Bucket=bucket, Prefix=key, **more)
        except Exception as error:  # botocore's errors, and s3fs's, share no base class
            raise Problem(f"{prefix} cannot be listed ({error}). Do name and credentials fit?") from error
        yield from (
            f"{S3}{bucket}/{each['Key']}" for each in page.get("Contents", ()) if _is_image(Path(each["Key"]).name)
        )


def listed(manifest: Path) -> Iterator[str]:
    """Yields the column `path` of a CSV file. Raises Problem if it has none, or a row without one."""
    with manifest.open(newline="") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise Problem(f"{manifest} has no column `path`; its first line is {','.join(rows.fieldnames or ())!r}")
        for row in rows:
            if not row["path"]:
                raise Problem(f"{manifest}, line {rows.line_num}: `path` is empty")
            yield row["path"]


def join(root: str, path: str) -> str:
    """The full path of one in a listing, where relative paths start at `root`, a folder or s3://…"""
    return path if path.startswith(("/", S3)) else f"{root.rstrip('/')}/{path}"


def read(path: str, most: int) -> bytes:
    """The first `most` bytes of a file or an object.

    Raises:
        OSError: it cannot be read.
        Problem: the store cannot be reached, or there are no credentials: that says nothing of the object.
    """
    if not path.startswith(S3):
        with Path(path).open("rb") as file:
            return file.read(most)
    try:
        data: bytes = _s3().cat_file(path, end=most)
    except OSError as error:
        if error.errno == errno.EINVAL and not _s3().size(path):  # a store has no first bytes of an empty object
            return b""
        raise
    except Exception as error:  # botocore's errors where nothing answers share no base class with the rest
        raise Problem(
            f"{path} cannot be fetched ({error}). Can the store be reached, and are there credentials for it (of a Ray "
            "cluster: where each machine ran `ray start`)? Run it again to go on."
        ) from error
    return data


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


@cache
def _s3() -> Any:
    import s3fs  # a second to import: not where a folder is read

    return s3fs.S3FileSystem(skip_instance_cache=True)  # `cache` keeps it
