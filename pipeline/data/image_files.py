"""Lists and reads images of a list of paths or an object store, without ever holding a whole list in memory.

An object store's address and credentials are what the AWS tools read: AWS_ENDPOINT_URL, AWS_PROFILE, and so on.
"""

import errno
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.data import table, walk
from pipeline.stage import Problem

S3 = "s3://"


def objects(prefix: str, left_out: Counter[str]) -> Iterator[str]:
    """Yields the addresses s3://bucket/key of the images below s3://bucket/prefix, in the store's order.

    What a folder's walk would leave out is left out here too, and counted. Only an object without an extension is asked
    for its first bytes: of others the name tells.

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
        for each in page.get("Contents", ()):
            if each["Key"].endswith("/") and not each["Size"]:
                continue  # a console's way to show a folder
            address = f"{S3}{bucket}/{each['Key']}"
            if why := _no_image(address, each["Key"].removeprefix(key)):
                left_out[why] += 1
            else:
                yield address


def listed(listing: Path) -> Iterator[str]:
    """Yields the column `path` of a CSV file. Raises Problem if it has none, or a row without one."""
    for row in table.rows(listing, ["path"], "`path` names an image a row"):
        if not row.cells["path"]:
            raise Problem(f"{listing}, line {row.line}: `path` is empty")
        yield row.cells["path"]


def join(root: str, path: str) -> str:
    """The full path of one in a listing, where relative paths start at `root`, a folder or s3://…"""
    return path if path.startswith(("/", S3)) else f"{root.rstrip('/')}/{path}"


def read(path: str, most: int) -> bytes:
    """The first `most` bytes of a file or an object.

    Raises:
        OSError: it cannot be read, or is no regular file.
        Problem: the store cannot be reached, or there are no credentials: that says nothing of the object.
    """
    if not path.startswith(S3):
        return walk.read(path if Path(path).exists() else _as_written_elsewhere(path), most)
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


def _no_image(address: str, name: str) -> str | None:
    """Why an object is left out; None: it is listed."""
    *folders, last = name.split("/")
    for folder in folders:
        if why := walk.unwanted_folder(folder):
            return why
    if why := walk.litter(last):
        return why
    if walk.is_named_so(last):
        return None
    return walk.of_another_kind(last) if Path(last).suffix else walk.no_image(read(address, walk.HEAD), last)


def _as_written_elsewhere(path: str) -> Path:
    """The file that a list of another system means: with backslashes, or with accents composed or apart (macOS)."""
    found = Path("/")
    for part in Path(path.replace("\\", "/")).absolute().parts[1:]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((form for form in forms if (found / form).exists()), part)
    return found


@cache
def _s3() -> Any:
    import s3fs  # a second to import: not where a folder is read

    return s3fs.S3FileSystem(skip_instance_cache=True)  # `cache` keeps it
