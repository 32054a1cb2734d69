"""Runs a function over many items on a Ray cluster, a processor each. Ray is an extra: requirements/ray.txt.

Each machine of the cluster needs what requirements/pipeline.txt and requirements/ray.txt install, and access to what
the items name (a shared folder, an object store). This project's code is sent along. Run the command on one of them.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.ahead import ahead
from pipeline.stage import Problem

ADDRESS = "RAY_ADDRESS"  # Ray's own variable: where a cluster's head is, or `auto` on a machine of it
UNDER_WAY = 2  # items for each processor: one that it works on, and one that waits
CODE = [str(Path(__file__).parents[1] / name) for name in ("leukdetect", "pipeline")]

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def connected(
    address: str, function: Callable[[Shared, Item], Result], shared: Shared
) -> Iterator[Callable[[Iterable[Item]], Iterator[Result]]]:
    """Yields a function from items to function(shared, item), in the order of the items.

    An item whose worker or machine died is given to another, so `function`, from the top of a module, must have no
    effect but its result. `shared` is sent to each machine once; arrays in it are not copied there.

    Raises Problem if Ray is not installed, there is no cluster, or an item's workers died again and again; a Problem of
    `function` as it is, and any other of its errors as Ray's RayTaskError with the worker's traceback.
    """
    _check(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home otherwise
    try:
        import ray
    except ImportError as error:
        raise Problem(
            "a Ray cluster was asked for, and Ray is not installed: "
            "pip install --require-hashes -r requirements/ray.txt. Without --ray and RAY_ADDRESS all runs here."
        ) from error
    try:
        ray.init(address, runtime_env={"py_modules": CODE}, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # what it raises differs from version to version
        raise Problem(
            f"the Ray cluster at {address} cannot be used ({error}); `ray start --head` starts one"
        ) from error
    try:
        task, kept = ray.remote(num_cpus=1)(function), ray.put(shared)

        def result(reference: Any) -> Result:
            try:
                value: Result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, Problem):
                    raise error.cause from None
                raise  # it quotes the worker's own traceback
            except ray.exceptions.RayError as error:
                raise Problem(f"Ray gave up: {error}") from error
            return value

        def most() -> float:  # called again for every item: a cluster may grow
            return float(UNDER_WAY * max(1, ray.cluster_resources().get("CPU", 0)))

        yield lambda items: ahead(items, partial(task.remote, kept), result, most)
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Raises Problem at once if nothing listens there: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # `auto`
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise Problem(f"there is no Ray cluster at {address} ({error}); `ray start --head` starts one") from error
