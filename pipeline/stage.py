"""What every stage shares: running `main`, writing outputs, keeping state over an interruption, progress bars."""

import errno
import fcntl
import functools
import gc
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_OF_THE_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EIO}
_PASSWORD = re.compile(r"(^|=)[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)  # scheme://user:password@
STATE = Path(".state")  # survives a stage that DVC starts again; never an output

Item = TypeVar("Item")


class Problem(Exception):
    """Something the user can mend. The message says what was wrong and what to do."""


def run(main: Callable[[], None]) -> None:
    """Runs a stage's `main` as `guard` does, and says how long it took and its peak memory."""
    started = time.monotonic()
    guard(main)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"took {time.monotonic() - started:.0f} s, at most {peak / 2**30:.1f} GiB of memory")
    gc.freeze()  # or Python searches all that pandas and matplotlib made before it ends: up to a second


def guard(main: Callable[[], None]) -> None:
    """Runs `main`; a Problem, Ctrl-C, or a disk that is full or read-only ends it with one message, not a traceback.

    At SIGTERM or SIGHUP what it started ends with it, and temporary files go, as at Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # under nohup it is not
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if any(_PASSWORD.search(argument) for argument in sys.argv[1:]):
            raise Problem(
                "an argument holds a password, which others see in the process list; a server's belongs in ~/.netrc, "
                "the registry's in MLFLOW_TRACKING_PASSWORD"
            )
        main()
    except Problem as problem:
        sys.exit(f"\nerror: {problem}")
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written was kept; run it again to go on", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if is_full_disk(error):
            sys.exit(
                f"\nerror: the disk is full{where}. Free some space and run it again; nothing half-written was kept."
            )
        if error.errno not in _OF_THE_PLACE:
            raise
        sys.exit(f"\nerror: {error.strerror}{where}. Make that a place that can be written, then run this again.")


def is_full_disk(error: BaseException) -> bool:
    """Whether the disk is full: an error of the whole machine and not of the file at hand. `guard` reports it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a file or make a folder at, then renames it into place.

    On any error the temporary path is removed and what stood at `path` before still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work / path.name
        if path.is_dir():  # a folder cannot be renamed over: step aside first, an instant before
            path.rename(work / f"{path.name}.former")
        (work / path.name).replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder's work for the block, which ends with the process, however that ends.

    Raises Problem if one is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Problem(f"another process is at work in {folder}; run this again once it has ended") from error
        yield
    finally:
        os.close(descriptor)


def require(path: Path, made_by: str) -> Path:
    """Returns the path of an input.

    Raises Problem, which names the stage that makes it, if it is missing, or not what was there when it was sealed.
    """
    if not path.exists():
        raise Problem(f"{path} is missing; `dvc repro {made_by}` makes it")
    digest, found = _digest(path), path.stat()
    if not digest.exists():
        return path
    if digest.read_bytes().strip() != _known(path.absolute(), found.st_size, found.st_mtime_ns).encode():
        raise Problem(
            f"{path} is not the file that was made: {digest.name} has another hash. A damaged disk or DVC cache puts "
            f"other content in its place. Remove .dvc/cache, then `dvc repro --force {made_by}` makes it anew"
        )
    return path


def seal(*paths: Path) -> None:
    """Writes each file's hash beside it, which `require` holds it against: DVC trusts what lies in its cache."""
    for path in paths:
        with writing(_digest(path)) as file:
            file.write_text(f"{sha256(path)}\n")


def _digest(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@functools.cache
def _known(path: Path, size: int, time_ns: int) -> str:
    """The hash of a file that has not changed since, as its size and time tell."""
    return sha256(path)


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """What `write_json` wrote. Raises Problem if it is missing or damaged, which names the stage that makes it."""
    try:
        found = json.loads(require(path, made_by).read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is damaged ({error}); `dvc repro --force {made_by}` makes it anew") from error
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that diffs well: sorted keys, two spaces, a final newline."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def state_key(*parts: str) -> str:
    """Names a stage's saved state by all that its result depends on, so that it only resumes its own work."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def drop_others(state: Path) -> None:
    """Removes the state that other recipes or other data left beside this one."""
    for other in set(state.parent.glob("*")) - {state}:
        shutil.rmtree(other)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "image") -> Iterable[Item]:
    """A progress bar on stderr, only if that is a terminal, so that logs stay short."""
    return tqdm(items, desc=description, total=total, unit=unit, disable=None, leave=False)
