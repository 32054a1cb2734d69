"""A fuzz campaign against the decoder, the server and the loader: `make fuzz` for an hour, CI for a minute or two.

Run: python -m tests.load.fuzz [--seconds 3600] [--seed 0] [decoder] [http] [model]

Each mutation comes of the seed and its number alone. A finding ends the campaign, and names both.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import onnx

from leukdetect import apart, cost, model_file
from leukdetect.child import Child, EndedError
from leukdetect.images import ImageError
from tests import tiny_model
from tests.load.mutations import SEEDS, mutate
from tests.load.structures import NUMBERS, structured
from tests.memory import peak, resident
from tests.project import ROOT
from tests.server import Server, running

SIZE = 64
ORDINARY_SECONDS = 2.0  # of processor time, of which `cost` promises about half a second
GROWTH = 40_000_000  # bytes of memory from the first fifth of a campaign to its end
MOST = 900_000_000  # bytes at once, decoding
HTTP_STATUSES = {
    200,
    202,
    206,
    400,
    401,
    403,
    404,
    405,
    408,
    409,
    411,
    413,
    414,
    415,
    416,
    417,
    422,
    429,
    431,
    501,
    503,
    504,
    505,
}


class FoundError(AssertionError):
    """What a campaign looks for; the message names the mutation."""


@dataclass
class Campaign:
    """How far one came. `outcomes`: how many mutations ended in which way."""

    name: str
    seconds: float
    seed: int
    number: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: list[int] = field(default_factory=list)

    def mutations(self) -> Iterator[np.random.Generator]:
        """A generator for each mutation, until the time is over."""
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            yield np.random.default_rng((self.seed, self.number))
            self.number += 1

    def found(self, what: object) -> FoundError:
        return FoundError(f"{self.name}: mutation {self.number} of seed {self.seed}: {what}")

    def remember(self, bytes_held: int) -> None:
        self.memory.append(bytes_held)

    def check_memory(self) -> None:
        """Flat: what was held after the first fifth is what is held at the end."""
        early, late = self.memory[len(self.memory) // 5], self.memory[-1]
        if late > early + GROWTH:
            raise self.found(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")

    def __str__(self) -> str:
        held = (
            f"{self.memory[len(self.memory) // 5] / 1e6:.0f} to {self.memory[-1] / 1e6:.0f} MB" if self.memory else "–"
        )
        most = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common(12))
        return f"{self.name}: {self.number} mutations, slowest {self.slowest:.2f} s, memory {held}; {most}"


def decoder(campaign: Campaign) -> None:
    """Files of every format against the decoder under its budget: pixels, or a reason, in time."""
    kinds = sorted(SEEDS)
    for random in campaign.mutations():
        print(campaign.number, flush=True)  # should it crash this process, the last number tells
        data = structured(kinds[int(random.integers(len(kinds)))], random)
        within = cost.memory(data)
        cpu, wall = time.process_time(), time.monotonic()
        try:
            pixels = apart.decode(data, SIZE).pixels
            outcome = "decoded"
        except ImageError as error:
            outcome = "apart: over budget" if isinstance(error, apart.CostlyError) else "refused"
            if "crashed" in str(error) or "was ended" in str(error):
                raise campaign.found(error) from error
        except Exception as error:
            raise campaign.found(f"{type(error).__name__}: {error}") from error
        if outcome == "decoded" and (pixels.shape, pixels.dtype) != ((SIZE, SIZE, 3), np.uint8):
            raise campaign.found(f"{pixels.dtype} {pixels.shape}")
        campaign.outcomes[outcome] += 1
        taken = time.process_time() - cpu
        campaign.slowest = max(campaign.slowest, taken if within is not None else 0)
        if taken > ORDINARY_SECONDS:
            raise campaign.found(f"{taken:.1f} s of processor time in this process, of {len(data)} bytes")
        if time.monotonic() - wall > 60:
            raise campaign.found("a minute for one image")
        if campaign.number % 50 == 0:
            campaign.remember(resident())
        if (highest := peak()) > MOST:
            raise campaign.found(f"{highest / 1e6:.0f} MB")


BODY = tiny_model.jpeg((60, 60, 200))
PATHS = (
    "/predict",
    "/predict/batch",
    "/explain",
    "/feedback",
    "/livez",
    "/metrics",
    "/",
    "/v2/models/leukdetect/infer",
)
FIELDS = (
    "Host: x",
    "Host:",
    "Content-Length: {length}",
    "Content-Length: 0",
    "Content-Length: +5",
    "Content-Length: 9" * 3,
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: \x0bchunked",
    "Expect: 100-continue",
    "Expect: 200",
    "Connection: close",
    "Connection: keep-alive, upgrade",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "Accept: */*;q=x",
    "Accept: image/png",
    "Content-Type: multipart/form-data; boundary=b",
    "Content-Type: multipart/form-data",
    "X-Deadline-Ms: १",
    "X-Deadline-Ms: 99999999999",
    "Range: bytes=0-",
    "Content-Encoding: gzip",
    " folded",
    "No colon",
    "X: " + "x" * 9000,
    "Authorization: Bearer " + "k" * 100,
    "Inference-Header-Content-Length: 5",
    "Origin: null",
    "Cookie: a=b",
    "\0: x",
    "Host: a\rb",
)


def request(random: np.random.Generator) -> bytes:
    """A request, right but for one or two of its line, its fields, its ends of lines and its body."""

    def one(of: Sequence[str]) -> str:
        return of[int(random.integers(len(of)))]

    odd = set(random.integers(6, size=int(random.integers(1, 3))).tolist())
    method = one(("GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "post", "X" * 50)) if 0 in odd else "POST"
    path = one(PATHS)
    path += one(("?class=pre", "?" + "a" * 500, "//", "/../..", "%00", "#x", " x", "\xe9")) if 1 in odd else ""
    version = one(("HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "")) if 2 in odd else "HTTP/1.1"
    body = BODY
    fields = ["Host: x", "Connection: close"]
    match random.integers(6):
        case 0:
            body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + BODY + b"\r\n--b--\r\n"
            fields.append("Content-Type: multipart/form-data; boundary=b")
        case 1:
            path, body = "/feedback", b'{"request_id": "a", "class": "pre"}'
        case 2:
            body = mutate(BODY, random)
        case 3:
            pieces = [b"%x;x=%s\r\n%s\r\n" % (9, b"y" * 20, BODY[at : at + 9]) for at in range(0, 900, 9)]
            body = b"".join(pieces) + b"0\r\n\r\n"
    chunked = body.endswith(b"\r\n0\r\n\r\n")
    fields.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    if 3 in odd:
        fields.insert(int(random.integers(len(fields) + 1)), one(FIELDS).replace("{length}", str(len(body))))
    if 4 in odd:
        del fields[int(random.integers(len(fields)))]
    end = one(("\n", "\r", "\r\r\n")) if 5 in odd and random.random() < 0.3 else "\r\n"
    data = end.join([f"{method} {path} {version}".rstrip(), *fields, "", ""]).encode("latin-1", "replace") + body
    return mutate(data, random) if 5 in odd else data


def http(campaign: Campaign) -> None:
    """Requests against a real server: an answer that is no 500, or an end; and others are answered all the while."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model.write(Path(folder) / "m.onnx")
        flags = ("--model", f"{folder}/m.onnx", "--read-seconds", "2", "--keep-alive-seconds", "1")
        with running(Path(folder), *flags) as server:
            url = urlsplit(server.url)
            address = (url.hostname or "", url.port or 0)
            for random in campaign.mutations():
                data = b"".join(request(random) for _ in range(int(random.choice([1, 1, 1, 2, 5]))))
                begun = time.monotonic()
                campaign.outcomes[_sent(campaign, address, data)] += 1
                campaign.slowest = max(campaign.slowest, time.monotonic() - begun)
                if campaign.number % 50 == 0:
                    _check_server(campaign, server)
            _check_server(campaign, server)
            failures = [line for line in server.log() if line.get("traceback")]
        if failures:
            raise campaign.found(failures[0])


def _sent(campaign: Campaign, address: tuple[str, int], data: bytes) -> str:
    """Sends all, and reads to the end; where nothing comes any more, it says that it has sent all."""
    received = b""
    with socket.create_connection(address, timeout=0.2) as connection, contextlib.suppress(ConnectionError):
        with contextlib.suppress(TimeoutError):
            connection.sendall(data)
            while part := connection.recv(2**16):
                received += part
        connection.settimeout(20)  # without an end: a finding
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(2**16):
            received += part
    statuses = [int(each[:3]) for each in received.split(b"HTTP/1.1 ")[1:] if each[:3].isdigit()]
    if wrong := set(statuses) - HTTP_STATUSES - {100, 307}:
        raise campaign.found(f"status {wrong} for {data[:300]!r}")
    return str(statuses[0]) if statuses else "ended"


def _check_server(campaign: Campaign, server: Server) -> None:
    if server.process.poll() is not None:
        raise campaign.found(f"the server ended with {server.process.returncode}")
    answer = httpx.post(f"{server.url}/predict", content=BODY, timeout=20)
    if answer.status_code != 200 or answer.json()["class"] != "pre":
        raise campaign.found(f"a bystander got {answer.status_code} {answer.text[:200]}")
    campaign.remember(resident(server.process.pid))


def model(campaign: Campaign) -> None:
    """Model files against the loader in its trial process: accepted, or refused with a reason, in time."""
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder) / "mutated.onnx", Path(folder) / "whole.onnx"
        tiny_model.write(whole, index=tiny_model.index(thumbnails=True))
        trial, asked = Child("leukdetect.trial"), 0
        try:
            for random in campaign.mutations():
                path.write_bytes(mutated_model(whole.read_bytes(), random))
                begun = time.monotonic()
                question = {"path": str(path), "threads": 1, "memory": model_file.TRIAL_MEMORY, "seconds": 60}
                try:
                    verdict = trial.ask(question, 30)
                    outcome = (verdict["refused"] or "accepted: ").split(":")[0]
                    asked += 1
                except EndedError as error:  # onnxruntime's own, which is why there is a process
                    outcome, asked = f"ended: it {error}", 0
                    if "exit code 1)" in str(error):  # Python's: an exception that the loader does not expect
                        raise campaign.found("the trial ended with a traceback") from error
                campaign.outcomes[outcome] += 1
                campaign.slowest = max(campaign.slowest, time.monotonic() - begun)
                if asked == 30:  # each adds to what its limits count
                    trial.close()
                    asked = 0
        finally:
            trial.close()


def mutated_model(data: bytes, random: np.random.Generator) -> bytes:
    """A model file with another contract, another index, other numbers in its graph, or broken bytes."""
    if random.random() < 0.2:
        return mutate(data, random)
    file = onnx.ModelProto.FromString(data)
    prop = file.metadata_props[int(random.integers(len(file.metadata_props)))]
    match random.integers(4):
        case 0 | 1:
            contract = next(each for each in file.metadata_props if each.key == "leukdetect")
            told = json.loads(contract.value)
            for _ in range(int(random.integers(1, 3))):
                _twist(told, random)
            contract.value = json.dumps(told)
        case 2:
            prop.value = mutate(prop.value.encode(), random).decode("utf-8", "ignore")
        case _:
            _twist_graph(file.graph, random)
    return file.SerializeToString()


STRANGE: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    1e308,
    -1e308,
    0.5,
    "",
    "x",
    "x" * 5000,
    "\0",
    [],
    [[]],
    {},
    "1e999",
    [1] * 3000,
)


def _twist(told: Any, random: np.random.Generator) -> None:
    """One value, anywhere in the JSON, becomes another, goes, or is doubled."""
    while True:
        keys = list(told) if isinstance(told, dict) else list(range(len(told))) if isinstance(told, list) else []
        if not keys:
            return
        key = keys[int(random.integers(len(keys)))]
        inner = told[key]
        if isinstance(inner, dict | list) and inner and random.random() < 0.7:
            told = inner
            continue
        match random.integers(4):
            case 0:
                del told[key]
            case 1 if isinstance(told, list):
                told.extend([inner] * int(random.choice([1, 50])))
            case _:
                told[key] = STRANGE[int(random.integers(len(STRANGE)))]
        return


def _twist_graph(graph: onnx.GraphProto, random: np.random.Generator) -> None:
    node = graph.node[int(random.integers(len(graph.node)))]
    number = NUMBERS[int(random.integers(len(NUMBERS)))]
    match random.integers(5):
        case 0:
            node.op_type = ("Loop", "If", "Expand", "ConstantOfShape", "Resize", "Identity", "Tile", "Nothing")[
                number % 8
            ]
        case 1 if node.attribute:
            attribute = node.attribute[int(random.integers(len(node.attribute)))]
            attribute.i = number
            attribute.ints[:] = [number] * len(attribute.ints)
        case 2:
            initializer = graph.initializer[int(random.integers(len(graph.initializer)))]
            initializer.dims[:] = [number] * max(1, len(initializer.dims))
        case 3:
            node.input[:] = list(reversed(node.input))
        case _:
            graph.output[0].type.tensor_type.elem_type = number % 20


CAMPAIGNS: dict[str, Callable[[Campaign], None]] = {"decoder": decoder, "http": http, "model": model}


def run(name: str, seconds: float, seed: int) -> Campaign:
    """One campaign, in this process; raises FoundError with what it found."""
    campaign = Campaign(name, seconds, seed)
    CAMPAIGNS[name](campaign)
    if campaign.memory:
        campaign.check_memory()
    return campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaigns", nargs="*", default=list(CAMPAIGNS), help=", ".join(CAMPAIGNS))
    parser.add_argument("--seconds", type=float, default=3600, help="of all campaigns together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="whose mutations")
    asked = parser.parse_args()
    share = asked.seconds / len(asked.campaigns)
    for name in asked.campaigns:
        print(in_a_process(name, share, asked.seed), flush=True)


def in_a_process(name: str, seconds: float, seed: int) -> str:
    """A campaign in a process of its own, which a decoder may crash; returns what it came to."""
    code = "import sys; from tests.load import fuzz; print(fuzz.run(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))"
    command = [sys.executable, "-X", "faulthandler", "-c", code, name, str(seconds), str(seed)]
    last = said = ""
    with tempfile.TemporaryFile("w+") as trouble:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=trouble, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                last, said = (line.strip(), said) if line[0].isdigit() else (last, line.strip())
        trouble.seek(0)
        if process.returncode:
            told = trouble.read()[-3000:]
            raise FoundError(f"{name}: mutation {last or '?'} of seed {seed} ended with {process.returncode}\n{told}")
    return said


if __name__ == "__main__":
    main()
