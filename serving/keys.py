"""Makes an API key: `python -m serving.keys NAME --role predict [--per-minute 600] [--append FILE]`.

Prints the key, which is shown this once and kept nowhere, and then the line for the keys file (LEUKDETECT_KEYS_FILE),
which holds only the key's hash. With --append it adds the line itself; a running server notices within a second.
"""

import argparse
import fcntl
import os
import secrets
import sys
from pathlib import Path
from typing import get_args

from serving.request import auth


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.keys", description="Makes an API key.")
    roles = "reviewer: confirm also what other keys asked; admin: all of it"
    parser.add_argument("name", help="whose key it is, as logs will name it")
    parser.add_argument("--role", required=True, choices=get_args(auth.Role), help=roles)
    parser.add_argument("--per-minute", type=int, help="how many requests a minute it may send (no limit)")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add its line to this file instead of printing it")
    asked = parser.parse_args()
    key = secrets.token_urlsafe(32)
    line = auth.Key(asked.name, asked.role, auth.digest_of(key), asked.per_minute).line()
    try:
        if asked.append:
            append(asked.append, line)
        else:
            auth.parse(line)
    except (auth.KeysError, OSError) as error:
        sys.exit(f"error: {error}")
    print(key)
    if not asked.append:
        print(line)


def append(file: Path, line: str) -> None:
    """Adds a line to the keys file, made where there is none (0600); a server that reads it never sees half of it.

    One process at a time: of two at once, each would else write the file as it was before the other.

    Raises KeysError: the file would be broken; it is left as it was.
    """
    file = file.resolve()  # a link stays a link
    folder = os.open(file.parent, os.O_RDONLY)  # the lock, since the file itself is replaced
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = file.read_text("utf-8-sig") if file.exists() else ""
        text = before + ("\n" if before and not before.endswith("\n") else "") + line + "\n"
        auth.parse(text)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as new:
                new.write(text)
                new.flush()
                os.fsync(new.fileno())  # the key is printed next, and is nowhere else
            if file.exists():
                temporary.chmod(file.stat().st_mode & 0o770)  # others have no business here
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        os.close(folder)


if __name__ == "__main__":
    main()
