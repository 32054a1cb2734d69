"""Helpers of every test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import quick

if TYPE_CHECKING:  # it imports MLflow, which takes seconds that most tests need not spend
    from tests.registry import Registry


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only files that need no TensorFlow, process or service")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under --quick, files that need more are not even imported."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if config.getoption("--quick") and is_test and not quick.is_quick(collection_path) else None


def require(condition: object, reason: str) -> None:
    """Skips the test where something it needs is absent; under LEUKDETECT_REQUIRE_ALL=1 (CI) that is a failure."""
    if condition:
        return
    if os.environ.get("LEUKDETECT_REQUIRE_ALL") == "1":
        pytest.fail(f"LEUKDETECT_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def nobodys_registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a test names no registry, there is none: not the one of a demo that ran in this folder."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('nobody')}/absent/mlflow.db"


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """A server in the test's own process tells MLflow its registry for good: not so that the next test has it too."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables, to copy: making them takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def the_registry(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> "Registry":
    """One file for all tests: MLflow takes seconds to begin with a file. Tests take `a_registry`."""
    from tests.registry import Registry

    return Registry(tmp_path_factory.mktemp("registry"), empty_database)


@pytest.fixture
def a_registry(the_registry: "Registry", empty_database: Path) -> "Registry":
    """A registry without a version."""
    the_registry.make_anew(empty_database)
    return the_registry


@pytest.fixture(scope="session")
def base_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 without its top, as a hospital would keep it: random, with lively batch statistics."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(5)
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([gamma, beta + rng.normal(0, 0.1, beta.shape), mean, variance * 1.5])
    path = tmp_path_factory.mktemp("weights") / "base.weights.h5"
    base.save_weights(path)
    return path


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few dots: 300 an inch cost a second each, and are looked at elsewhere."""
    from pipeline.reporting.figures import style

    monkeypatch.setitem(style.STYLE, "savefig.dpi", 40)
