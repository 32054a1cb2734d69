"""A real MLflow registry in a SQLite file, as the demo has it: resolving, keeping, and starting without it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from leukdetect import contract, model_file
from leukdetect.registry import DamagedError, RegistryError
from serving.metrics import Metrics
from serving.models import last_known_good
from serving.models.served import Models
from serving.models.startup import start
from serving.models.updates import Updates
from serving.settings import Settings
from tests import tiny_model
from tests.conftest import require
from tests.registry import Registry
from tests.server import ROOT, running


@pytest.fixture
def settings(a_registry: Registry, tmp_path: Path) -> Settings:
    return Settings(tracking_uri=a_registry.uri, cache_dir=tmp_path / "cache")


def asked(settings: Settings) -> Models:
    """A start, and then the registry's answer."""
    models = start(settings)
    updates = Updates(settings.model_copy(update={"watch_seconds": 0}), models, Metrics())
    updates.start()
    updates.reload().result(60)
    updates.stop()
    return models


def test_the_alias_is_resolved_downloaded_and_loaded(a_registry: Registry, settings: Settings) -> None:
    version = a_registry.add()
    begun = start(settings)
    assert (begun.champion.located.version, begun.champion.located.alias, begun.note) == (version, "champion", None)
    assert begun.champion.located.path.is_relative_to(settings.cache_dir)
    assert begun.champion.contract.precision == "int8"


def test_the_servers_own_environment_serves_from_a_sqlite_registry(a_registry: Registry, tmp_path: Path) -> None:
    """It holds no pandas and no TensorFlow, and a part of MLflow only."""
    python = ROOT / ".venv-serving/bin/python"
    require(python.exists(), "there is no .venv-serving; `make .venv-serving/.ready` makes it")
    version = a_registry.add()
    with running(tmp_path, "--mlflow-tracking-uri", a_registry.uri, python=python) as server:
        health = httpx.get(f"{server.url}/health").json()
        assert (health["status"], health["model"]["version"]) == ("ok", version)
        answer = httpx.post(f"{server.url}/predict", content=tiny_model.jpeg((60, 60, 200))).json()
        assert (answer["class"], answer["model"]["precision"]) == ("pre", "int8")


def test_fp32_is_served_when_asked_for(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    fp32 = settings.model_copy(update={"precision": "fp32"})
    assert start(fp32).champion.contract.precision == "fp32"


def test_fp32_is_served_where_int8_does_not_agree_on_this_processor(a_registry: Registry, settings: Settings) -> None:
    def disagree(file: Path) -> None:
        if file.name == contract.FILES["int8"]:
            golden = tiny_model.write(file, precision="int8").golden[0]
            wrong = golden.model_copy(update={"probabilities": [0.25] * 4})
            tiny_model.write(file, precision="int8", golden=[wrong])

    a_registry.add(change=disagree)
    begun = start(settings)
    assert (begun.champion.contract.precision, begun.note) == ("fp32", None)
    with pytest.raises(model_file.GoldenError):
        start(settings.model_copy(update={"precision": "int8"}))


def test_a_version_is_downloaded_once(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    first = settings.registry.locate(settings.model)
    written = first.path.stat().st_mtime_ns
    assert settings.registry.locate(settings.model) == first
    assert first.path.stat().st_mtime_ns == written


def test_version_1_of_a_registry_made_anew_is_another_version_1(
    a_registry: Registry, settings: Settings, empty_database: Path
) -> None:
    a_registry.add()
    before = settings.registry.locate(settings.model)
    a_registry.make_anew(empty_database)
    assert a_registry.add() == before.version
    assert settings.registry.locate(settings.model).path != before.path


def test_a_cold_start_without_the_registry_serves_the_last_known_good_and_says_so(
    a_registry: Registry, settings: Settings
) -> None:
    version = a_registry.add()
    good = start(settings)
    with a_registry.down():
        begun = asked(settings)
        assert not a_registry.database.exists()  # asking must not make an empty one
    assert (begun.champion.sha256, begun.champion.located.version) == (good.champion.sha256, version)
    assert begun.note == f"Version {version}, the last known good, serves, since the registry could not be asked."


def test_a_cold_start_does_not_wait_for_a_registry_that_does_not_answer(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = a_registry.add()
    start(settings)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # ten, else
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes every connection, and says nothing
        elsewhere = settings.model_copy(update={"tracking_uri": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        assert start(elsewhere).champion.located.version == version
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()  # it was not even asked
        begun = asked(elsewhere)
    assert begun.note == f"Version {version}, the last known good, serves, since the registry could not be asked."


def test_a_last_known_good_that_a_disk_has_damaged_is_downloaded_anew(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    version = a_registry.add()
    good = start(settings).champion
    for file in good.located.path.glob("*.onnx"):
        file.write_bytes(file.read_bytes()[:-100])
    begun = start(settings)
    assert (begun.champion.located.version, begun.champion.sha256, begun.note) == (version, good.sha256, None)
    assert [each.getMessage() for each in caplog.records] == [
        "the last known good does not load; the registry is asked",
        f"version {version} is damaged on this machine; it is downloaded anew",
    ]


def test_a_new_version_that_is_refused_changes_nothing(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    good = a_registry.add()
    good_model = start(settings).champion
    wrong = [good_model.contract.golden[0].model_copy(update={"probabilities": [0.25] * 4})]
    bad = a_registry.add(golden=wrong)
    for _ in range(2):  # a refused version never becomes the last known good
        begun = asked(settings)
        assert begun.champion.located.version == good != bad
        assert begun.note == f"Version {bad} was refused; version {good} goes on serving."
        assert "golden set: a probability differs" in vars(caplog.records[-1])["error"]


def test_without_a_last_known_good_a_refused_version_is_an_error(a_registry: Registry, settings: Settings) -> None:
    golden = contract.Golden(image="", probabilities=[0.25] * 4, unlikeness=0)
    a_registry.add(golden=[golden])
    with pytest.raises(model_file.RefusedError, match="golden set"):
        start(settings)


def test_an_interrupted_download_never_looks_finished(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_registry.add()

    def half(_: Registry, __: str, folder: Path) -> Path:
        (folder / "leukdetect.onnx").write_bytes(b"half")
        raise RegistryError("the registry went away")

    with monkeypatch.context() as patched:
        patched.setattr("leukdetect.registry.Registry.download", half)
        with pytest.raises(RegistryError, match="the registry went away"):
            settings.registry.locate(settings.model)
    assert not list(settings.cache_dir.rglob("*.onnx"))
    assert start(settings).note is None


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"another"), Path.unlink], ids=["another", "missing"])
def test_a_file_that_is_not_the_one_that_was_registered_is_not_kept(
    a_registry: Registry, settings: Settings, change: Callable[[Path], object]
) -> None:
    a_registry.add()
    change(a_registry.sources[-1] / "artifacts/leukdetect.onnx")
    with pytest.raises(DamagedError, match=r"leukdetect\.onnx of .* is not the file that was registered"):
        settings.registry.locate(settings.model)
    assert not list(settings.cache_dir.rglob("*.onnx"))


def test_what_is_of_no_use_any_more_is_removed_from_disk(a_registry: Registry, settings: Settings) -> None:
    located = []
    for _ in range(4):
        a_registry.add()
        located.append(settings.registry.locate(settings.model))
        last_known_good.remember(settings, located[-1])
    interrupted, under_way = (located[0].path.with_name(f".download-{name}") for name in ("old", "new"))
    for folder in (interrupted, under_way):
        folder.mkdir()
    os.utime(interrupted, (0, 0))
    last_known_good.forget(settings, keep=[located[0]])
    left = {folder for folder in located[0].path.parent.iterdir() if folder.is_dir()}
    assert left == {located[0].path, located[2].path, located[3].path, under_way}  # the last, and the one before it


def test_notes_about_another_alias_do_not_count(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    start(settings)
    other = settings.model_copy(update={"model": "models:/leukdetect@other"})
    assert last_known_good.noted(settings)[0]
    assert last_known_good.noted(other) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model": "models:/leukdetect@champion", "folder": 1}',
        '{"model": "models:/leukdetect@champion", "folder": "../elsewhere", "version": "1"}',
        '{"model": "models:/leukdetect@champion", "folder": "1-1", "version": "1", "before": 3}',
        "[" * 90_000,
        '{"a":' * 15_000,
        "9" * 90_000,
        "\x00\udcff",
    ],
    ids=lambda text: f"{text[:10]}-{len(text)}",
)
def test_a_broken_note_counts_as_none_and_is_logged(
    a_registry: Registry, settings: Settings, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    a_registry.add()
    start(settings)
    note = settings.cache_dir / "leukdetect" / last_known_good.LAST_KNOWN_GOOD
    note.write_bytes(text.encode("utf-8", "surrogateescape"))
    (settings.cache_dir / "elsewhere").mkdir()
    assert last_known_good.noted(settings) == (None, None)
    assert "what served last cannot be read" in caplog.text
    assert start(settings).note is None


def test_a_registrys_password_is_not_repeated(tmp_path: Path) -> None:
    settings = Settings(tracking_uri="http://me:secret@127.0.0.1:9", cache_dir=tmp_path)
    with pytest.raises(RegistryError, match=r"could not be had from http://…@127\.0\.0\.1:9") as error:
        settings.registry.locate(settings.model)
    assert "secret" not in str(error.value)


def test_a_missing_alias_is_named(a_registry: Registry, settings: Settings) -> None:
    for model_name in ("models:/leukdetect@champion", "models:/other@champion"):
        with pytest.raises(RegistryError, match=rf"{model_name}: the registry at sqlite:.* has no such alias"):
            settings.registry.locate(model_name)


def test_a_missing_file_and_a_wrong_name_say_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"nothing\.onnx is no file; name an \.onnx file or a registry alias"):
        Settings().registry.locate(str(tmp_path / "nothing.onnx"))
    with pytest.raises(
        RegistryError, match=r"models:/leukdetect/3 names no registered model; write models:/NAME@ALIAS"
    ):
        Settings().registry.locate("models:/leukdetect/3")


def test_a_file_is_served_directly_and_never_becomes_last_known_good(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    settings = Settings(model=str(tmp_path / "m.onnx"), cache_dir=tmp_path / "cache")
    assert start(settings).champion.located.version is None
    assert not settings.cache_dir.exists()
