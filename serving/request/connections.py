"""Connections: one HTTP parser (httptools) and a bound on what a client can make the server keep, beyond uvicorn's."""

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.problems import ProblemError, overloaded
from serving.request import descriptors, heads
from serving.request.budget import Budget

HEAD_SECONDS = 10.0  # until a request's head must be there; its body has `read_seconds`
LEFTOVER_SECONDS = 60.0  # for the rest of a body that was refused: many a client reads no answer before all is sent
LEFTOVER_BYTES = 2**29  # the same, in bytes
LEAST_SENT = 1000  # bytes of a waiting answer that a client must take between two looks, else it does not read
STOP_SECONDS = 1.0  # between two looks while the server stops
MAX_HEAD_BYTES = 2**16  # of a request: whatever is not its body, so also trailers and what chunks are wrapped in
MAX_CHUNK_SHARE = 16  # the same for each byte of the body, which may come byte by byte
MAX_FIELDS = 100  # headers of a request
PIECE = 4096  # bytes parsed at a time, so that few requests are taken from a client that sends them all at once
RESERVED = 8  # connections beyond all others, for requests without a body: probes


class _Answers(asyncio.Transport):
    """A connection's transport as an answer sees it: counts what is written, and does not cut off who still sends."""

    def __init__(self, connection: "Connection") -> None:
        super().__init__()
        self._connection = connection
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():  # uvloop's would raise
            self.written += len(data)
            self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        self._connection.linger()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with an end to each wait and a limit to each amount.

    - A head that does not come ends it; a timer looks every HEAD_SECONDS, so that may take twice as long.
    - What is no request gets an answer of the application's own, in its turn, and ends it.
    - Upgrade is ignored (RFC 9110, 7.8), trailers too.
    - An answer that comes before its request's end is not lost: the rest is read and dropped, within limits.
    - A client that does not read is cut off.
    - What it keeps beyond a piece, of a head, of what is not parsed yet or of an answer, is of the server's budget.
    - One connection too many ends the one that has been idle longest, or else the one whose answer has waited longest
      to be read. (`limit_concurrency` tells how many.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self.limit_concurrency = self.limit_concurrency, None  # uvicorn would refuse probes, too
        self._spare = False
        self._unparsed = memoryview(b"")
        self._fed = self._body = self._body_left = 0  # bytes of this request
        self._in_head = False
        self._answering: RequestResponseCycle | None = None  # `cycle` is the newest, whose turn may not have come
        self._deaf = False  # nothing that comes is parsed any more
        self._dropped = 0  # bytes of what was answered already
        self._sent: int | None = None  # bytes that the client had taken when an answer was last seen to wait
        self._every = HEAD_SECONDS
        self._budget: Budget | None = self.app_state.get("budget")  # None: no application of ours
        self._kept = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._answers = _Answers(self)
        self._since = self.loop.time()  # when it began to wait for what it waits for
        self._timer = self.loop.call_later(self._every, self._look)
        if self._most is not None and len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._unparsed = memoryview(b"")
        if self._budget:
            self._budget.give_back(self._kept)
            self._budget = None
        if self._answering is not None and not self._answering.response_complete:  # uvicorn tells only the newest
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        self._every = STOP_SECONDS
        self._timer.cancel()
        self._look()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        assert self._most is not None
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        idle = [each for each in others if each._idle]
        idle = idle or [each for each in others if each.transport.get_write_buffer_size()]
        if idle:
            longest = min(idle, key=lambda each: each._since)
            self.connections.discard(longest)  # at once: many may come before it is told that it is lost
            longest.transport.abort()
            self._spare = len(self.connections) > self._most
        elif len(self.connections) > self._most + RESERVED:
            self.connections.discard(self)
            self.transport.abort()
        else:
            self._spare = True

    def _look(self) -> None:
        """Ends the connection where what it waits for does not come."""
        waiting = self.transport.get_write_buffer_size()
        sent = self._answers.written - waiting - descriptors.on_the_way(self.transport)
        unread = waiting > 0 and self._sent is not None and sent - self._sent < LEAST_SENT
        self._sent = sent if waiting else None
        between_requests = self.timeout_keep_alive_task is not None  # then it is uvicorn that closes it
        answered = self.cycle is not None and (self._deaf or self.cycle.more_body)
        patience = LEFTOVER_SECONDS if answered else HEAD_SECONDS
        if unread:
            self.transport.abort()
        elif self._idle and not between_requests and self.loop.time() - self._since >= patience:
            self.transport.close()
        self._timer = self.loop.call_later(self._every, self._look)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            self._since = self.loop.time()
        if self._deaf or (self.cycle is not None and self.cycle.more_body and self.cycle.response_complete):
            self._dropped += len(data)
            if self._dropped > LEFTOVER_BYTES:
                self.transport.abort()
        if self._deaf or self.transport.is_closing():
            return
        self._unparsed = memoryview(bytes(self._unparsed) + data) if self._unparsed else memoryview(data)
        if self.pipeline:
            self.flow.pause_reading()
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._keep()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._keep()

    def _keep(self, ask: bool = False) -> None:
        """Counts what it keeps as a part of the budget; `ask`: raises ProblemError (503) where that is too much."""
        whole = memoryview(self._unparsed.obj).nbytes if self._unparsed else 0  # of which a part is not parsed yet
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        keeps = self._fed - self._body + whole + unread
        keeps = keeps if keeps > PIECE else 0
        if keeps != self._kept and self._budget:
            if ask:
                self._budget.check(keeps - self._kept)
            self._budget.keep(keeps - self._kept)
            self._kept = keeps

    def _parse(self) -> None:
        try:
            while self._unparsed and not self.pipeline and not self._deaf:
                self._feed(self._unparsed[: self._body_left or PIECE])
            self._keep(ask=True)
        except ProblemError as problem:
            self._refuse(problem)
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback raised
            self._refuse(cause if isinstance(cause, ProblemError) else heads.malformed())

    def _feed(self, piece: memoryview) -> None:
        self._fed += len(piece)
        try:
            self.parser.feed_data(piece)
            used = len(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # It has taken the body for another protocol. The head again, without the header, and then the body.
            [used] = upgrade.args
            fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
            line = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
            head = b"%s %s HTTP/%s\r\n%s\r\n" % (*line, b"".join(fields))
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it; never answered
            self.parser.feed_data(head)
        self._unparsed = self._unparsed[used:]
        if self._fed - (1 + MAX_CHUNK_SHARE) * self._body > MAX_HEAD_BYTES:
            if len(self.url) > MAX_HEAD_BYTES / 2:
                raise ProblemError(414, "url-too-long", "The URL is too long", "Send the image as the request's body.")
            detail = f"All but its body may have {MAX_HEAD_BYTES} bytes."
            raise ProblemError(431, "head-too-large", "The request's head is too large", detail)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer, which must not pass for a header (RFC 9110, 6.5.1)
        if len(self.headers) == MAX_FIELDS:
            detail = f"A request may have {MAX_FIELDS} headers."
            raise ProblemError(431, "head-too-large", "Too many headers", detail)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        method, version = self.parser.get_method().decode(), self.parser.get_http_version()
        length = heads.check(method, version, self.headers)
        if self.parser.should_upgrade():
            return  # see `_feed`
        if self._most and self._spare and len(self.connections) > self._most and method not in ("GET", "HEAD"):
            raise overloaded("Too many connections. Try again in a second.")
        if not self.url.startswith(b"/"):  # http://host/path, as if to a proxy
            url = httptools.parse_url(self.url)
            self.url = (url.path or b"/") + (b"?" + url.query if url.query else b"")
        self.expect_100_continue &= version == "1.1"
        self._body_left = length
        self._begin()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._fed = self._body = self._body_left = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _begin(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = self._answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, _closing(cycle, app) if cycle.waiting_for_100_continue else app)

    def _refuse(self, problem: ProblemError) -> None:
        """Answers what is no request with a problem, after the requests before it; then the connection ends."""
        self._deaf, self._unparsed = True, memoryview(b"")
        broken = self.cycle  # it is this request's body that is broken, if that was still to come
        if broken is not None and broken.more_body:
            if broken.response_started:
                self.linger()
                return
            broken.disconnected = True
            broken.message_event.set()
            if self.pipeline:  # its turn has not come: the newest is on the left
                self.pipeline.popleft()
            else:
                broken.response_complete = True
        self.on_message_begin()
        self.url = b"/"
        self.scope["state"]["problem"] = problem
        self._begin()
        self.cycle.keep_alive = False

    def linger(self) -> None:
        """Ends the connection, but where the client still sends it reads on, since a reset would lose the answer."""
        if self.transport.is_closing():
            return
        if not (self._deaf or self._unparsed or self.pipeline or self.cycle.more_body):
            self.transport.close()
            return
        self._deaf, self._unparsed, self._since = True, memoryview(b""), self.loop.time()
        self.pipeline.clear()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        if self._deaf and not self.pipeline:
            return  # it lingers
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._parse()


def _closing(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Ends the connection where the body was not asked for: it may or may not come (RFC 9110, 10.1.1)."""

    async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_on(message: ASGISendEvent) -> None:
            if cycle.waiting_for_100_continue:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, send_on)

    return run
