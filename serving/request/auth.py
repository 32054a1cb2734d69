"""Who may do what: API keys from a file of hashes, as a dependency of routes: `Depends(auth.Required("predict"))`.

A line of the file is `NAME ROLE SHA256HEX [REQUESTS_PER_MINUTE]`; `python -m serving.keys` makes it. `#` begins a
comment. Without a file anyone may predict and confirm, and nobody is admin.
"""

import hashlib
import hmac
import logging
import math
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from serving.problems import ProblemError

Role = Literal["predict", "reviewer", "admin"]  # each may do what those before it may

LOOK_SECONDS = 1.0  # how often to look whether the file has changed
BURST_SECONDS = 5.0  # of its rate, a key may use this much at once

log = logging.getLogger(__name__)


class KeysError(ValueError):
    """The keys file cannot be used; the message names the line and what is wrong, and no hash."""


@dataclass(frozen=True)
class Key:
    """One line of the file."""

    name: str
    role: Role
    digest: bytes = field(repr=False)  # SHA-256 of the key
    per_minute: int | None = None

    def may(self, role: Role) -> bool:
        """Whether it has this role's rights."""
        return get_args(Role).index(self.role) >= get_args(Role).index(role)

    def line(self) -> str:
        """As the file has it."""
        rate = "" if self.per_minute is None else f" {self.per_minute}"
        return f"{self.name} {self.role} {self.digest.hex()}{rate}"


class Access:
    """The keys in force; `look` reads them again when their file has changed, so that no restart is needed.

    A changed file that is broken or gone leaves the keys as they were, and logs an error once.

    Raises KeysError: the file is broken, or not there, to begin with.
    """

    def __init__(self, keys_file: Path | None, readable: bool = False) -> None:
        """`readable`: whether everybody on this machine may read the file."""
        self._file, self._readable = keys_file, readable
        self._keys: list[Key] = []
        self._buckets: dict[Key, _Bucket] = {}
        self._seen: tuple[int, ...] | None = None
        if keys_file is not None:
            self._seen = _stamp(keys_file)
            self._keys = _read(keys_file, readable)

    def known(self, key: str | None) -> Key | None:
        """Whose key it is (None: no keys are in use). Raises ProblemError: 401 without a key or with an unknown one."""
        if self._file is None:
            return None
        digest = digest_of(key or "")
        # It takes as long whichever key it is, or none: every entry is compared, in constant time.
        found = [each for each in self._keys if hmac.compare_digest(each.digest, digest)]
        if key and found:
            return found[0]
        detail = "Send an API key that is known here, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
        challenge = {"WWW-Authenticate": 'Bearer realm="leukdetect"'}
        raise ProblemError(401, "unauthorized", "An API key is needed", detail, headers=challenge)

    def allow(self, role: Role, found: Key | None) -> None:
        """Lets a request with this key pass. Raises ProblemError: 403 for the wrong role, 429 over the key's rate."""
        if found is None:
            if role == "admin":
                detail = "Nobody is admin here: set LEUKDETECT_KEYS_FILE to a file that has a key of role admin."
                raise ProblemError(403, "forbidden", "Not allowed", detail)
            return
        if not found.may(role):
            detail = f"This needs a key of role {role}; {found.name} has role {found.role}."
            raise ProblemError(403, "forbidden", "Not allowed", detail)
        if found.per_minute is not None:
            bucket = self._buckets.setdefault(found, _Bucket(found.per_minute))
            if wait := bucket.take():
                detail = f"{found.name} may send {found.per_minute} requests a minute. Try again in {wait} s."
                raise ProblemError(429, "too-many-requests", "Too many requests", detail, retry_after=wait)

    def look(self) -> None:
        """Reads the file again where it has changed."""
        if self._file is None:
            return
        seen = _stamp(self._file)
        if seen == self._seen:
            return
        self._seen = seen  # a broken file, too, is read and reported once
        before = self._keys
        try:
            self._keys = keys = _read(self._file, self._readable)
        except KeysError as error:
            log.error("the keys stay as they were", extra={"error": str(error)})
            return
        # A key that stays must not get a full bucket because of its neighbour.
        self._buckets = {key: self._buckets[key] for key in keys if key in self._buckets}
        added, removed = ([key.name for key in new if key not in old] for new, old in ((keys, before), (before, keys)))
        log.info("keys read", extra={"audit": "keys", "added": added, "removed": removed})


class Required(SecurityBase):
    """A dependency that lets only this role pass; its value is the key's name. Reads `app.state.access`.

    A security scheme, too, which makes the button Authorize in /docs.
    """

    scheme_name = "ApiKey"
    model = HTTPBearer(description="An API key. Clients that cannot send this header may send it as `X-API-Key`.")

    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(self, request: Request) -> str | None:
        access: Access = request.app.state.access
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        found = access.known(key.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key"))
        request.state.api_key = found
        request.state.key = found.name if found else None  # for the log, of one that is refused too
        access.allow(self._role, found)
        return found.name if found else None


def digest_of(key: str) -> bytes:
    """The hash that is kept of a key, 32 bytes. A key is 256 random bits, so it needs no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def parse(text: str) -> list[Key]:
    """The keys of a file's text. Raises KeysError: names the first line that is wrong."""
    keys: dict[str, Key] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        try:
            key = _parse(fields)
            if key.name in keys:
                raise KeysError(f"the name {key.name} is taken by a line above")
            if key.digest in digests:
                raise KeysError(f"{key.name} has the same key as a line above")
        except KeysError as error:
            raise KeysError(f"line {number}: {error}") from None
        keys[key.name] = key
        digests.add(key.digest)
    return list(keys.values())


def _parse(fields: list[str]) -> Key:
    # No field is repeated in a message, for in a line that is wrong any of them may be the hash, or a key.
    if len(fields) not in (3, 4):
        raise KeysError(f"{len(fields)} fields where NAME ROLE SHA256HEX [REQUESTS_PER_MINUTE] is due")
    name, role, digest, *rate = fields
    if not re.fullmatch(r"[A-Za-z0-9][\w.@-]{0,39}", name, re.ASCII):
        raise KeysError("the name must be of at most 40 letters, digits and . _ - @")
    if role not in get_args(Role):
        raise KeysError(f"the role must be one of {', '.join(get_args(Role))}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise KeysError("the hash must be a SHA-256 in 64 lower-case hexadecimal digits")
    if rate and not re.fullmatch(r"[1-9][0-9]{0,8}", rate[0]):
        raise KeysError("the requests per minute must be a whole number above 0")
    return Key(name, cast(Role, role), bytes.fromhex(digest), int(rate[0]) if rate else None)


def _read(file: Path, readable: bool) -> list[Key]:
    try:
        with file.open(encoding="utf-8-sig") as opened:  # Notepad marks its encoding
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            if mode & 0o002 or (mode & 0o004 and not readable):
                raise KeysError(
                    f"others on this machine may {'change' if mode & 2 else 'read'} it (mode {mode:04o}): "
                    f"chmod o= {file}, or where a container mounts it so, set LEUKDETECT_KEYS_READABLE=true"
                )
            keys = parse(opened.read())
    except OSError as error:
        raise KeysError(f"the keys file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"the keys file {file} is not text") from error
    except KeysError as error:
        raise KeysError(f"the keys file {file}, {error}") from None
    if not keys:  # as a file is that somebody is about to write
        raise KeysError(f"the keys file {file} has no key; `python -m serving.keys` makes one")
    return keys


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    # A file that is put in place of another may keep its time.
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


class _Bucket:
    """A token bucket: a key's requests in this process. Used on the event loop alone, so it needs no lock."""

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60
        self._most = max(1.0, self._rate * BURST_SECONDS)
        self._tokens = self._most
        self._at = time.monotonic()

    def take(self) -> int:
        """Takes a token and returns 0; where there is none, the seconds until there is one, rounded up."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return math.ceil((1 - self._tokens) / self._rate)
        self._tokens -= 1
        return 0
