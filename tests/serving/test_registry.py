"""A real MLflow registry in a SQLite file, as the demo has it: resolving, keeping, and starting without it."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from serving import contract, model, registry
from serving.registry import RegistryError
from serving.settings import Settings
from serving.startup import start
from tests import tiny_model
from tests.conftest import require
from tests.server import ROOT, running

# MLflow uses a part of SQLAlchemy that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``:sqlalchemy.exc.SADeprecationWarning")


class Registry:
    """A registry whose versions are tiny models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.database}"
        self.client = mlflow.MlflowClient(self.uri)
        self.client.create_registered_model("leukdetect")

    def add(self, **changes: Any) -> str:
        """Registers a version, moves the alias to it, and returns it."""
        source = self.folder / f"source-{len(list(self.folder.iterdir()))}"
        tiny_model.write(source / "artifacts" / "leukdetect.onnx", **changes)
        tiny_model.write(source / "artifacts" / "leukdetect.int8.onnx", precision="int8")
        version = self.client.create_model_version("leukdetect", str(source))
        self.client.set_registered_model_alias("leukdetect", "champion", version.version)
        return str(version.version)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """MLflow takes seconds to make a database: once, then copied."""
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def a_registry(empty: Registry, tmp_path: Path) -> Registry:
    copy = Registry.__new__(Registry)
    copy.folder = tmp_path / "registry"
    copy.folder.mkdir()
    copy.database = copy.folder / "mlflow.db"
    shutil.copy(empty.database, copy.database)
    copy.uri = f"sqlite:///{copy.database}"
    copy.client = mlflow.MlflowClient(copy.uri)
    return copy


@pytest.fixture
def settings(a_registry: Registry, tmp_path: Path) -> Settings:
    return Settings(tracking_uri=a_registry.uri, cache_dir=tmp_path / "cache")


def test_the_alias_is_resolved_downloaded_and_loaded(a_registry: Registry, settings: Settings) -> None:
    version = a_registry.add()
    begun = start(settings)
    assert (begun.model.located.version, begun.model.located.alias, begun.note) == (version, "champion", None)
    assert begun.model.located.path.is_relative_to(settings.cache_dir)
    assert begun.model.contract.precision == "fp32"


def test_the_servers_own_environment_serves_from_a_sqlite_registry(a_registry: Registry, tmp_path: Path) -> None:
    """It holds no pandas and no TensorFlow, and a part of MLflow only."""
    python = ROOT / ".venv-serving/bin/python"
    require(python.exists(), "there is no .venv-serving; `make .venv-serving/.ready` makes it")
    version = a_registry.add()
    with running(tmp_path, "--mlflow-tracking-uri", a_registry.uri, python=python) as server:
        health = httpx.get(f"{server.url}/health").json()
        assert (health["status"], health["model"]["version"]) == ("ok", version)
        assert httpx.post(f"{server.url}/predict", content=tiny_model.jpeg((60, 60, 200))).json()["class"] == "pre"


def test_int8_is_served_when_asked_for(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    int8 = settings.model_copy(update={"precision": "int8"})
    assert start(int8).model.contract.precision == "int8"


def test_a_version_is_downloaded_once(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    first = registry.resolve(settings)
    written = first.path.stat().st_mtime_ns
    assert registry.resolve(settings) == first
    assert first.path.stat().st_mtime_ns == written


def test_version_1_of_a_registry_made_anew_is_another_version_1(
    a_registry: Registry, settings: Settings, empty: Registry
) -> None:
    a_registry.add()
    before = registry.resolve(settings)
    shutil.copy(empty.database, a_registry.database)
    assert a_registry.add() == before.version
    assert registry.resolve(settings).path != before.path


def test_a_cold_start_without_the_registry_serves_the_last_known_good_and_says_so(
    a_registry: Registry, settings: Settings
) -> None:
    version = a_registry.add()
    good = start(settings)
    a_registry.database.unlink()
    begun = start(settings)
    assert (begun.model.sha256, begun.model.located.version) == (good.model.sha256, version)
    assert begun.note == f"Version {version}, the last known good, serves, since the registry could not be asked."
    assert not a_registry.database.exists()  # asking must not make an empty one


def test_a_new_version_that_is_refused_changes_nothing(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    good = a_registry.add()
    good_model = start(settings).model
    wrong = [good_model.contract.golden[0].model_copy(update={"probabilities": [0.25] * 4})]
    bad = a_registry.add(golden=wrong)
    for _ in range(2):  # a refused version never becomes the last known good
        begun = start(settings)
        assert begun.model.located.version == good != bad
        assert begun.note == f"Version {good}, the last known good, serves, since version {bad} was refused."
        assert "golden set: a probability differs" in vars(caplog.records[-1])["error"]


def test_without_a_last_known_good_a_refused_version_is_an_error(a_registry: Registry, settings: Settings) -> None:
    golden = contract.Golden(image="", probabilities=[0.25] * 4, unlikeness=0)
    a_registry.add(golden=[golden])
    with pytest.raises(model.RefusedError, match="golden set"):
        start(settings)


def test_an_interrupted_download_never_looks_finished(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_registry.add()

    def half(artifact_uri: str, dst_path: str) -> None:
        (Path(dst_path) / "leukdetect.onnx").write_bytes(b"half")
        raise ConnectionError("the registry went away")

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.artifacts.download_artifacts", half)
        with pytest.raises(RegistryError, match="the registry went away"):
            registry.resolve(settings)
    assert not list(settings.cache_dir.rglob("*.onnx"))
    assert start(settings).note is None


def test_a_registrys_password_is_not_repeated(tmp_path: Path) -> None:
    settings = Settings(tracking_uri="http://me:secret@127.0.0.1:9", cache_dir=tmp_path)
    with pytest.raises(RegistryError, match=r"could not be had from http://…@127\.0\.0\.1:9") as error:
        registry.resolve(settings)
    assert "secret" not in str(error.value)


def test_a_missing_alias_is_named(a_registry: Registry, settings: Settings) -> None:
    with pytest.raises(RegistryError, match=r"models:/leukdetect@champion could not be had from .*champion not found"):
        registry.resolve(settings)


def test_a_missing_file_and_a_wrong_name_say_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"nothing\.onnx is no file; name an \.onnx file or a registry alias"):
        registry.resolve(Settings(model=str(tmp_path / "nothing.onnx")))
    with pytest.raises(
        RegistryError, match=r"models:/leukdetect/3 names no registered model; write models:/NAME@ALIAS"
    ):
        registry.resolve(Settings(model="models:/leukdetect/3"))


def test_a_file_is_served_directly_and_never_becomes_last_known_good(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    settings = Settings(model=str(tmp_path / "m.onnx"), cache_dir=tmp_path / "cache")
    assert start(settings).model.located.version is None
    assert not settings.cache_dir.exists()
