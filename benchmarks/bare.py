"""The ceiling: decode, resize and run in a loop, in one process, without any server.

With this project's decoder and session, or with those of the peers. Prints JSON. It needs only what a server needs,
so it runs in a server's own environment.

Run:    python -m benchmarks.bare serving|peers MODEL FOLDER [--n 300] [--threads 2]     (FOLDER holds the .jpg files)
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Classify = Callable[[bytes], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("code", choices=("serving", "peers"))
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    open_ = {"serving": with_serving, "peers": with_peers}[options.code]
    classify = open_(options.model, options.threads)
    files = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    probabilities = [classify(file) for file in files]  # also warms up
    started, cpu = time.perf_counter(), time.process_time()
    for file in itertools.islice(itertools.cycle(files), options.n):
        classify(file)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"n": options.n, "seconds": seconds, "cpu_seconds": cpu, "probabilities": probabilities}))


def with_serving(model: Path, threads: int) -> Classify:
    """As `serving` decodes and runs, batch 1."""
    from leukdetect import images
    from leukdetect.contract import ANSWER
    from leukdetect.runtime import open_session, run

    session = open_session(model, threads)
    size = session.get_inputs()[0].shape[1]

    def classify(file: bytes) -> list[float]:
        pixels: np.ndarray = images.resize(images.decode(file), size)
        probabilities: list[float] = run(session, pixels[None], ANSWER)[0][0].tolist()
        return probabilities

    return classify


def with_peers(model: Path, threads: int) -> Classify:
    """As the peers do."""
    os.environ |= {"MODEL": str(model), "THREADS": str(threads)}
    from benchmarks.peers import classifier

    session = classifier.open_session()
    size = classifier.size(session)
    return lambda file: classifier.classify(session, classifier.pixels(file, size)[None])[0]


if __name__ == "__main__":
    main()
