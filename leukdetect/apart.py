"""Decodes in a process that can be ended: what `cost` cannot prove to be cheap gets a budget, and is really stopped.

A helper, started on demand and kept, forks a child for each image. The child has limits of its own on processor time
and memory, writes no file, and gives way to others (nice). It ends when the image is decoded, when a limit is reached,
or when whoever asked hangs up; whatever a decoder does to it, this process reads only sizes and pixels from it.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from leukdetect import child, cost, decoding, images
from leukdetect.decoding import MAX_PIXELS, Decoded
from leukdetect.formats.errors import NoMemoryError

SECONDS = 5  # of processor time for one image; 40 megapixels, transparent and lossless, take one or two
MEMORY = 1_000_000_000  # bytes for one image; these take 0.96 GB as WebP
_PATIENT = {"seconds": 60, "memory": 2_000_000_000}  # 160 megapixels, or 80 with transparency
_ANY = 2**40  # pixels: the memory decides

Want = Literal["seen", "picture", "header"]  # as the model sees it, as a person does, or no pixel
# which of these, and whether scaled; pixels a side; at most so many pixels; seconds; memory; bytes of the file
_QUESTION = struct.Struct("!B?IQIQQ")
_STATUS = struct.Struct("!i")
_ERRORS = {each.__name__: each for each in (images.ImageError, images.UnsupportedImage, decoding.TooLargeError)}


class CostlyError(images.ImageError):
    """Decoding takes more time or memory than an image may."""


class GivenUpError(Exception):
    """Whoever asked has hung up."""


@dataclass
class Ask:
    """One image to decode apart. `answer` waits for it, in one thread; `hang_up` ends it, from any."""

    data: bytes
    want: Want
    size: int
    max_pixels: int
    scaled: bool = True
    seconds: int = SECONDS
    memory: int = MEMORY
    _ours: socket.socket | None = field(default=None, init=False)
    _given_up: bool = field(default=False, init=False)

    def hang_up(self) -> None:
        """Ends the decoding, if it is under way; `answer` then raises."""
        self._given_up = True
        if self._ours:
            with contextlib.suppress(OSError):  # it is over
                self._ours.shutdown(socket.SHUT_RDWR)

    def answer(self, helper: "Helper") -> tuple[images.Header, np.ndarray]:
        """The header and the pixels, uint8 RGB.

        Raises:
            ImageError: as the decoder says, or because the image costs too much, or because the decoder crashed on it.
            GivenUpError: `hang_up` was called.
        """
        kind, limits = get_args(Want).index(self.want), (self.seconds, self.memory, len(self.data))
        question = _QUESTION.pack(kind, self.scaled, self.size, self.max_pixels, *limits)
        received, most = bytearray(), 3 * self.size**2 + 65_536
        ours, theirs = socket.socketpair()
        with ours, contextlib.suppress(OSError):  # where the child has ended, what there is to read says why
            self._ours = ours
            with theirs:
                if not self._given_up:
                    helper.send(theirs)
            with contextlib.suppress(OSError):
                ours.sendall(question)
                ours.sendall(self.data)
            while len(received) <= most and (part := ours.recv(2**18)):
                received += part
        if self._given_up:
            raise GivenUpError
        if len(received) < _STATUS.size:
            raise images.ImageError("the image's decoder was ended; send the image again")
        (status,) = _STATUS.unpack_from(received, len(received) - _STATUS.size)
        if status == -signal.SIGXCPU:
            raise _costly(f"{self.seconds} s of processor time")
        head, _, pixels = received[: -_STATUS.size].partition(b"\n")
        if status or not head:
            raise images.ImageError("the image's decoder crashed on it")
        told = json.loads(head)
        if "error" not in told:
            shape = told["rows"], told["columns"], 3
            return images.Header(**told["header"]), np.frombuffer(pixels, np.uint8).reshape(shape)
        if told["error"] == "MemoryError":
            raise _costly(f"{self.memory / 1e6:g} MB of memory")
        raise _ERRORS.get(told["error"], images.ImageError)(told["message"])


class Helper:
    """The helper process. It takes one image after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, theirs: socket.socket) -> None:
        """Hands it the connection of an `Ask`; starts it where it does not run."""
        with self._lock:
            if self._process and self._process.poll() is not None:
                self._end()
            if not self._process:
                self._start()
            assert self._control
            socket.send_fds(self._control, [b"?"], [theirs.fileno()])

    def close(self) -> None:
        """Ends it, and what it decodes."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "leukdetect.apart"],
                cwd=Path(__file__).parents[1],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a process with threads cannot be forked safely
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def _end(self) -> None:
        if self._control:
            self._control.close()
        if self._process:
            self._process.wait()
        self._control = self._process = None


def decode(data: bytes, size: int, max_pixels: int = MAX_PIXELS, scaled: bool = True) -> Decoded:
    """As `decoding.decode`, within a budget: what may cost much is decoded apart.

    Raises:
        CostlyError: the budget does not suffice.
        ImageError: as `decoding.decode`.
    """
    if _at_once(data):
        return decoding.decode(data, size, max_pixels, scaled)
    header, pixels = _answer_of(Ask(data, "seen", size, max_pixels, scaled))
    return decoding.seen(Image.fromarray(pixels), header, size, data)


def sized(data: bytes, size: int, scaled: bool = True) -> np.ndarray:
    """As `images.sized`, within a budget for jobs that nobody waits for, whose images may be larger than a server's.

    Raises CostlyError, ImageError: as `decode`.
    """
    if _at_once(data):
        return images.sized(data, size, scaled)
    return _answer_of(Ask(data, "seen", size, _ANY, scaled, **_PATIENT))[1]


def header(data: bytes) -> images.Header:
    """As `images.header`, within the budget of `sized`."""
    if _at_once(data):
        return images.header(data)
    return _answer_of(Ask(data, "header", 0, _ANY, False, **_PATIENT))[0]


def whole(data: bytes, side: int) -> tuple[images.Header, Image.Image]:
    """As `images.read`, of an image of at most `side` pixels a side, within the budget of `sized`."""
    if _at_once(data):
        return images.read(data)
    header, pixels = _answer_of(Ask(data, "picture", side, _ANY, False, **_PATIENT))
    return header, Image.fromarray(pixels)


def _at_once(data: bytes) -> bool:
    return cost.ordinary(data) or not hasattr(socket, "send_fds")  # Windows


def _answer_of(ask: Ask) -> tuple[images.Header, np.ndarray]:
    """By a helper that is idle, or one more: as many as the caller has threads."""
    try:
        helper = _idle.pop()
    except IndexError:
        helper = Helper()
        atexit.register(helper.close)
    try:
        return ask.answer(helper)
    finally:
        _idle.append(helper)


def look(source: decoding.Source, size: int, scaled: bool = True) -> Decoded:
    """As `decode`, of any source; see `decoding.picture`."""
    if not isinstance(source, Image.Image | np.ndarray):
        return decode(decoding.file_bytes(source), size, scaled=scaled)
    upright = decoding.picture(source)
    kind = (source.format if isinstance(source, Image.Image) else None) or "pixels"
    header = images.Header(kind, upright.width, upright.height, upright.mode)
    decoding.check(header)
    return decoding.seen(upright, header, size, None)


_idle: deque[Helper] = deque()


def _costly(than: str) -> CostlyError:
    remedy = "Save it again as an ordinary JPEG or PNG, or make it smaller"
    return CostlyError(f"decoding the image takes more than {than}. {remedy}")


def _main() -> None:
    """The helper: a child for each connection that comes over stdin, one after the other, until stdin is closed."""
    control = socket.socket(fileno=0)
    os.nice(child.NICE)
    Image.init()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            status = _in_a_child(connection, control)
            with contextlib.suppress(OSError):  # nobody is there to be told
                connection.sendall(_STATUS.pack(status))


def _in_a_child(connection: socket.socket, control: socket.socket) -> int:
    """Forks a child that answers; ends it when one of the connections is closed. Returns its exit code, or -signal."""
    alive, child_has = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            control.close()
            _answer(connection)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(child_has)
    poll = select.poll()
    poll.register(alive, 0)  # closed when the child ends
    poll.register(connection, 0)
    poll.register(control, 0)
    if any(descriptor != alive for descriptor, _ in poll.poll()):
        os.kill(forked, signal.SIGKILL)
    os.close(alive)
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])


def _answer(connection: socket.socket) -> None:
    with connection.makefile("rwb") as stream:
        which, scaled, size, max_pixels, seconds, memory, length = _QUESTION.unpack(stream.read(_QUESTION.size))
        want: Want = get_args(Want)[which]
        child.limit(memory, seconds, files=False)
        data = stream.read(length)
        pixels = b""
        try:
            if want == "header":
                header, picture = images.header(data), Image.new("RGB", (0, 0))
            else:
                least = images.least(size, scaled and want == "seen")
                header, picture = images.read(data, least, lambda header: decoding.check(header, max_pixels))
            if want == "picture":
                picture.thumbnail((size, size))
            elif want == "seen":
                picture = Image.fromarray(images.resize(picture, size))
            answer: dict[str, Any] = {"header": asdict(header), "rows": picture.height, "columns": picture.width}
            pixels = picture.tobytes()
        except (MemoryError, NoMemoryError):
            answer = {"error": "MemoryError"}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        stream.write(json.dumps(answer).encode() + b"\n" + pixels)


if __name__ == "__main__":
    _main()
