"""Carries out the Dockerfile's `serving` without Docker: installs, serves as the image would, predicts once.

Run:    python3.11 deploy/serve_like_the_image.py --model models/leukdetect.onnx smear.jpg

Needs Linux, bubblewrap and binutils. The stages of the Dockerfile are carried out instruction by instruction into a
temporary folder. Then the entry point runs as the image's user, as process 1, with no capability, on a read-only root
where only the volume and /tmp are writable, and the health check beside it. Python 3.11 and the C libraries are this
machine's, unlike the image's. Prints the size of what the image adds to its base.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = "serving"
BASE_MB = 125  # python:3.11-slim-bookworm, unpacked, as its registry states; measuring it needs a pull
LIMIT_MB = 350
START_SECONDS = 90  # the health check's start period

Stage = list[tuple[str, str]]  # an instruction and what follows it, in order


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", type=Path, required=True, help="an .onnx file")
    arguments.add_argument("image", type=Path, help="what to ask about")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="leukdetect-image-") as name:
        image = build(Path(name))
        size = megabytes(image)
        print(f"{size} MB, and about {BASE_MB} MB of the base: {size + BASE_MB} of at most {LIMIT_MB} MB", flush=True)
        model = options.model.resolve()
        with serving(image, {"LEUKDETECT_MODEL": "/model.onnx"}, "--ro-bind", str(model), "/model.onnx") as (url, _):
            data = options.image.read_bytes()
            with urllib.request.urlopen(f"{url}/predict", data, timeout=60) as answer:  # noqa: S310 – our own, on loopback
                print(json.dumps(json.load(answer), indent=2, ensure_ascii=False))
    sys.exit(size + BASE_MB > LIMIT_MB)


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            found[rest.split(" AS ")[1]] = []
        else:
            list(found.values())[-1].append((instruction, rest))
    return found


def said(stage: Stage, instruction: str) -> str:
    """The arguments of the stage's only instruction of that name."""
    (rest,) = (rest for name, rest in stage if name == instruction)
    return rest


def environment(stage: Stage) -> dict[str, str]:
    arguments = dict(rest.split("=", 1) for name, rest in stage if name == "ARG")
    pairs = string.Template(said(stage, "ENV")).substitute(arguments)
    return dict(pair.split("=", 1) for pair in shlex.split(pairs))


def build(folder: Path, target: str = TARGET) -> Path:
    """Carries out a stage, and those it copies from; returns the root of the files that it adds to its base."""
    top = folder / target
    for name in ("build", "opt", "var"):
        (top / name).mkdir(parents=True)
    for instruction, rest in stages()[target]:
        if instruction == "COPY":
            words = shlex.split(rest)
            flags = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
            *sources, destination = (word for word in words if not word.startswith("--"))
            origin = ROOT
            if "from" in flags:
                origin = folder / flags["from"]
                if not origin.exists():
                    build(folder, flags["from"])
            for source in sources:
                _copy(origin / source.lstrip("/"), top, destination)
        elif instruction == "RUN":
            writable = [word for name in ("build", "opt", "var") for word in ("--bind", str(top / name), f"/{name}")]
            home = str(Path.home())  # pip's configuration
            path = f"{sys.base_prefix}/bin:{os.defpath}"
            subprocess.run(
                [*_sandbox(*writable, "--ro-bind", home, home), "--setenv", "PATH", path, "sh", "-euc", rest],
                check=True,
            )
    return top


def megabytes(folder: Path) -> int:
    """Size of the files in units of 10⁶ bytes, as registries state image sizes."""
    return round(sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6)


def inside(image: Path, extra: dict[str, str], *binds: str) -> list[str]:
    """The beginning of a command that runs in a container of this image. `extra`: environment; `binds`: bwrap's."""
    stage = stages()[TARGET]
    user, _, group = said(stage, "USER").partition(":")
    volume = said(stage, "VOLUME")
    mounts = [word for path in sorted(image.iterdir()) for word in ("--ro-bind", str(path), f"/{path.name}")]
    mounts += ["--bind", str(image / volume.lstrip("/")), volume, *binds, "--remount-ro", "/"]
    identity = ["--unshare-user", "--uid", user, "--gid", group, "--cap-drop", "ALL", "--chdir", said(stage, "WORKDIR")]
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin"} | environment(stage) | extra
    setenv = [word for name, value in variables.items() for word in ("--setenv", name, value)]
    return [*_sandbox(*mounts), "--clearenv", *setenv, *identity]


@contextmanager
def serving(image: Path, extra: dict[str, str], *binds: str) -> Iterator[tuple[str, int]]:
    """Runs the entry point until the health check passes; gives the address and the process's id. Then stops it.

    Raises:
        RuntimeError: it never became healthy, or SIGTERM did not end it with exit code 0.
    """
    stage = stages()[TARGET]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = inside(image, {**extra, "LEUKDETECT_PORT": str(port)}, *binds)
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*command, "--unshare-pid", "--as-pid-1", "--info-fd", str(writer), *json.loads(said(stage, "ENTRYPOINT"))],
        pass_fds=[writer],
    )
    os.close(writer)
    with os.fdopen(reader) as info:
        server = int(json.load(info)["child-pid"])
    try:
        health_check = [*command, *json.loads(said(stage, "HEALTHCHECK").split("CMD", 1)[1])]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(health_check, stderr=subprocess.DEVNULL).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not become healthy; its log says why")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", server
        os.kill(server, signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise RuntimeError(f"the server ended with exit code {process.returncode} after SIGTERM")
    finally:
        process.kill()  # --die-with-parent takes the server along
        process.wait()


def _sandbox(*mounts: str) -> list[str]:
    """bwrap, with this machine's system and Python 3.11 read-only, and `mounts`."""
    if shutil.which("bwrap") is None or sys.version_info[:2] != (3, 11):
        sys.exit("error: this needs Linux, bubblewrap (bwrap) and Python 3.11")
    system = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"]
    shared = [word for path in system if Path(path).exists() for word in ("--ro-bind", path, path)]
    python = ["--ro-bind", sys.base_prefix, sys.base_prefix]
    rest = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 – the container's own
    return ["bwrap", "--die-with-parent", *shared, *rest, *python, *mounts]


def _copy(source: Path, top: Path, destination: str) -> None:
    target = top / destination.strip("/")
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")  # .dockerignore
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy2(source, target / source.name if destination.endswith("/") else target)


if __name__ == "__main__":
    main()
