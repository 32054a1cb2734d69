"""What the system knows of connections: how many descriptors there may be, and what a client has taken of an answer."""

import asyncio
import fcntl
import resource
import struct
import termios

MOST = 2000  # connections
OWN_FILES = 40  # descriptors that the server needs besides: models, databases, downloads, reserved connections


def allow_many() -> tuple[int, int]:
    """How many connections there may be, and how many may wait to be accepted, so that descriptors do not run out.

    First raises the soft limit of open files, often 1024, to the hard one.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files = most if most != resource.RLIM_INFINITY else 2**20
    backlog = max(8, min(2048, files // 8))  # all of these may be accepted before one of them is looked at
    return max(4, min(MOST, (files - OWN_FILES - backlog) // 2)), backlog  # one may be sent a page: a file, too


def on_the_way(transport: asyncio.Transport) -> int:
    """Bytes that the system has and the client does not; by the transport alone, reading seems to go by megabytes."""
    try:
        told = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # closed, or not on this system
        return 0
    count: int = struct.unpack("i", told)[0]
    return count
