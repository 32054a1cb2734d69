"""Scoring and views on a Ray cluster of two nodes: what one machine gives, whoever dies on the way."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.process import free_port
from pipeline import cluster
from pipeline.scoring import worker
from pipeline.stage import Problem
from tests import object_store, ray_cluster, tiny_model
from tests.conftest import require
from tests.project import ROOT
from tests.ray_cluster import Cluster

BUCKET = "smears"
SECONDS = 600  # for a command; a tenth is enough on a machine without other work
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of an object store that this process and all that it starts know from the environment: the nodes too."""
    folder = tmp_path_factory.mktemp("store")
    with object_store.running(folder / "s3.log", BUCKET) as address, pytest.MonkeyPatch.context() as environment:
        for name, value in (object_store.KEYS | {"AWS_ENDPOINT_URL": address}).items():
            environment.setenv(name, value)
        yield address


@pytest.fixture(scope="module")
def two_nodes(address: str) -> Iterator[Cluster]:
    require(importlib.util.find_spec("ray"), "Ray is not installed (requirements/ray.txt)")
    with ray_cluster.running(1, 1) as running:
        yield running


def python(folder: Path, code: str, ray: str | None = None) -> subprocess.Popen[str]:
    """Runs code as a user's command would be run, in a folder, here or on a cluster."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    environment |= ray_cluster.VARIABLES | ({"RAY_ADDRESS": ray} if ray else {})
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Scoring


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, 600 images of a camera's size and a broken one, and in here/ the rows of one machine."""
    folder = tmp_path_factory.mktemp("smears")
    tiny_model.write(folder / "tiny.onnx")
    (folder / "images").mkdir()
    for number in range(600):
        path = folder / f"images/{number:03}.jpg"
        if number < 8:
            path.write_bytes(tiny_model.jpeg((30 * number, 250 - 30 * number, 90), (1024, 768)))
        else:
            path.hardlink_to(folder / f"images/{number % 8:03}.jpg")
    (folder / "images/broken.jpg").write_bytes(b"")
    finish(python(folder, score(folder / "images", folder / "here")))
    return folder


def score(source: Path | str, out: Path, part_rows: int = 20) -> str:
    arguments = ["score", str(source), "--out", str(out), "--model", str(out.parent / "tiny.onnx")]
    code = "import sys; from pipeline import score, stage; from pipeline.scoring import job; "
    return code + f"job.PART_ROWS = {part_rows}; sys.argv = {arguments}; stage.run(score.main)"


def when_under_way(process: subprocess.Popen[str], out: Path, what: Callable[[], bool]) -> None:
    """Does it once some parts are there and others are not, as soon as it can be done."""
    done = False
    while not done:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
        done = len(list(out.glob("part-*.parquet"))) >= 3 and what()
    assert len(list(out.glob("part-*.parquet"))) < 31


@pytest.mark.slow
def test_two_nodes_write_the_files_of_one_machine_and_a_worker_that_is_killed_changes_nothing(
    smears: Path, two_nodes: Cluster
) -> None:
    process = python(smears, score(smears / "images", smears / "there"), two_nodes.address)
    when_under_way(process, smears / "there", two_nodes.nodes[1].kill_a_worker)
    assert "601 images" in finish(process)
    here = contents(smears / "here")
    assert len(here) == 32
    assert contents(smears / "there") == here


@pytest.mark.slow
def test_a_machine_that_is_lost_changes_nothing(smears: Path, two_nodes: Cluster) -> None:
    third = two_nodes.add(1)
    held: set[int] = set()

    def tell(number: signal.Signals) -> None:
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def lose_it() -> bool:
        """The others wait until it has a task: on a fast machine they would be done before it begins."""
        held.update(pid for node in two_nodes.nodes[:2] for pid in node.workers())
        tell(signal.SIGSTOP)
        if lost := bool(third.workers()):
            third.kill()
        return lost

    process = python(smears, score(smears / "images", smears / "lost"), two_nodes.address)
    try:
        when_under_way(process, smears / "lost", lose_it)
    finally:
        tell(signal.SIGCONT)
    finish(process)
    assert contents(smears / "lost") == contents(smears / "here")


@pytest.mark.slow
def test_from_an_object_store_two_nodes_write_the_files_of_one_machine(
    smears: Path, address: str, two_nodes: Cluster
) -> None:
    client = object_store.client(address)
    images = sorted((smears / "images").iterdir())[::5]
    assert smears / "images/broken.jpg" in images
    for image in images:
        client.upload_file(str(image), BUCKET, f"2026/{image.name}")
    finish(python(smears, score(f"s3://{BUCKET}/2026/", smears / "store-here")))
    said = finish(python(smears, score(f"s3://{BUCKET}/2026/", smears / "store-there"), two_nodes.address))
    assert re.search(rf"{len(images)} images, .*, 1 that could not be used", said)
    assert contents(smears / "store-there") == contents(smears / "store-here")


@pytest.mark.slow
def test_what_no_node_can_read_ends_the_job_with_one_message(smears: Path, two_nodes: Cluster) -> None:
    names = "\n".join(f"nowhere/{number}.jpg" for number in range(worker.UNREADABLE))
    (smears / "gone.csv").write_text(f"path\n{names}\n")
    process = python(smears, score(smears / "gone.csv", smears / "gone", 2000), two_nodes.address)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "error: 100 images in a row could not be read" in said
    assert "Traceback" not in said
    assert list(contents(smears / "gone")) == ["_listing.parquet"]


# Views


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 random images of 32 px, a recipe with a frozen base of random weights; in here/ the views of one machine."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data/prepared").mkdir(parents=True)
    np.save(
        folder / "data/prepared/images.npy",
        np.random.default_rng(0).integers(0, 256, (110, 32, 32, 3)).astype(np.uint8),
    )
    recipe = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    recipe["prepare"]["image_size"] = 32
    recipe["features"] |= {"views": 4, "weights": "base.weights.h5"}
    recipe["model"]["last_layer"], recipe["fine_tune"]["trainable_from"] = None, "conv4_block1_1_conv"
    (folder / "params.yaml").write_text(yaml.safe_dump(recipe))
    keys = [each["key"] for each in recipe["classes"]]
    rows = [
        (f"{keys[i % 4]}/{i}.jpg", keys[i % 4], i % 4, f"{i:064x}", "", f"g{i}", "train" if i < 100 else "val")
        for i in range(110)
    ]
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "data/prepared/split.csv", index=False)
    random = "import keras; keras.utils.set_random_seed(5);"
    random += "base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3));"
    finish(python(folder, f"{random} base.save_weights('base.weights.h5'); {VIEWS}"))
    (folder / "data/features").rename(folder / "here")
    return folder


VIEWS = "from pipeline import features; features.main()"


@pytest.mark.slow
def test_views_from_two_nodes_are_the_bytes_of_one_machine_and_a_worker_that_is_killed_changes_nothing(
    project: Path, two_nodes: Cluster
) -> None:
    shutil.rmtree(project / "data/features", ignore_errors=True)
    process = python(project, VIEWS, two_nodes.address)
    while not any(node.kill_a_worker() for node in two_nodes.nodes[:2]):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    finish(process)
    here = contents(project / "here")
    assert len(here) == 11  # of four views and val, both arrays, and the record
    assert contents(project / "data/features") == here


@pytest.mark.slow
def test_one_worker_gives_the_bytes_of_two(project: Path) -> None:
    require(importlib.util.find_spec("ray"), "Ray is not installed (requirements/ray.txt)")
    shutil.rmtree(project / "data/features", ignore_errors=True)
    with ray_cluster.running(1) as one:
        finish(python(project, VIEWS, one.address))
    assert contents(project / "data/features") == contents(project / "here")


# Without


def nothing(shared: object, item: object) -> None: ...


def test_without_ray_one_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(Problem, match=r"Ray is not installed: pip install .*requirements/ray\.txt"),
        cluster.connected("auto", nothing, ()),
    ):
        pass


def test_where_no_cluster_answers_one_is_told_so_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(Problem, match=rf"no Ray cluster at {address} .*refused"),
        cluster.connected(address, nothing, ()),
    ):
        pass
