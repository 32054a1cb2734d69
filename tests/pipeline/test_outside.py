"""Folders and files outside the project: what changes there is seen by the next `dvc repro`, and is in the run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline import outside, params, stage
from pipeline.data import outside as records
from tests.project import ROOT

KEYS = ("benign", "early", "pre", "pro")


def draw(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (grey, grey, 200)).save(path)


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A ward's images, weights and another laboratory's images, beside the project's folder."""
    for number, key in enumerate(KEYS):
        draw(tmp_path / f"ward/{key}/p{number}.png", number)
    draw(tmp_path / "other/a.png", 99)
    (tmp_path / "base.weights.h5").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def project(ward: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose recipe names them."""
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["fetch"] |= {
        "source": "folder", "folder": str(ward / "ward"), "origin": "a test", "licence": "MIT",
        "thumbnails": False, "synthetic": True,
    }  # fmt: skip
    recipe["features"]["weights"] = str(ward / "base.weights.h5")
    recipe["evaluate"]["other_laboratory"] = str(ward / "other")
    (ward / "project").mkdir()
    monkeypatch.chdir(ward / "project")
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    return ward / "project"


def looked() -> dict[str, dict[str, Any]]:
    outside.main()
    return records.read()


def test_the_digest_is_what_sha256sum_gives(project: Path, ward: Path) -> None:
    found = looked()
    images = sorted((ward / "ward").rglob("*.png"))
    lines = "".join(
        f"{hashlib.sha256(i.read_bytes()).hexdigest()}  {i.relative_to(ward / 'ward').as_posix()}\n" for i in images
    )
    assert found["images"] == {"files": 4, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    assert found["weights"]["files"] == found["other_laboratory"]["files"] == 1


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda ward: draw(ward / "ward/pre/new.png", 7), {"images"}),
        (lambda ward: draw(ward / "ward/pre/p2.png", 8), {"images"}),
        (lambda ward: (ward / "ward/pre/p2.png").unlink(), {"images"}),
        (lambda ward: (ward / "ward/pre/p2.png").rename(ward / "ward/pro/p2.png"), {"images"}),
        (lambda ward: (ward / "base.weights.h5").write_bytes(b"changed"), {"weights"}),
        (lambda ward: draw(ward / "other/b.png", 5), {"other_laboratory"}),
        (lambda ward: (ward / "ward/Thumbs.db").write_bytes(b"x"), set()),
        (lambda ward: os.utime(ward / "ward/pre/p2.png"), set()),
    ],
)
def test_what_is_new_changed_removed_or_moved_is_seen(project: Path, ward: Path, change: Any, seen: set[str]) -> None:
    before = looked()
    change(ward)
    after = looked()
    assert {name for name in before if before[name] != after[name]} == seen


def test_a_file_of_another_content_and_the_same_size_and_time_is_seen(project: Path, ward: Path) -> None:
    """As `cp --preserve` and some synchronisers leave it."""
    before, file = looked(), ward / "base.weights.h5"
    times = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert looked()["weights"] != before["weights"]


def test_what_did_not_change_is_not_read_again(project: Path, ward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = looked()
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return "0" * 64

    monkeypatch.setattr(stage, "sha256", reading)
    draw(ward / "ward/pre/new.png", 7)
    assert looked()["images"]["files"] == before["images"]["files"] + 1
    assert read == ["new.png"]


def test_a_table_of_labels_counts(project: Path, ward: Path) -> None:
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["fetch"]["table"] = "labels.csv"
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    (ward / "ward/labels.csv").write_text("image,label\n")
    before = looked()
    (ward / "ward/labels.csv").write_text("image,label\np1.png,pre\n")
    assert looked()["images"] != before["images"]


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("gone", [shutil.rmtree, empty])
def test_what_is_not_on_this_machine_is_taken_as_it_was(
    project: Path, ward: Path, gone: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = looked()
    gone(ward / "ward")
    assert looked() == before
    assert "ward is not here, or empty (not mounted?): taken as it was" in capsys.readouterr().out


def test_a_recipe_that_names_nothing_has_empty_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert looked() == {}
    assert {path.read_text() for path in records.OUTSIDE.iterdir()} == {"{}\n"}


def test_the_run_has_the_hashes(project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.registry import tracking

    shutil.copy(empty_database, project / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    found = looked()
    tags = tracking.client().get_run(tracking.run_id(params.load(), "d" * 64)).data.tags
    assert {name: tags[f"leukdetect.outside.{name}"] for name in found} == {n: r["sha256"] for n, r in found.items()}


def test_each_record_is_a_dependency_of_the_stage_that_reads_what_it_is_of() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for reader, name in (("fetch", "images"), ("features", "weights"), ("evaluate", "other_laboratory")):
        assert f"data/outside/{name}.json" in stages[reader]["deps"]


@pytest.mark.slow
def test_dvc_repro_fetches_again_only_when_an_image_changed(project: Path, ward: Path) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    chosen = {
        name: stages[name] | {"deps": [dep for dep in stages[name]["deps"] if dep.startswith("data/")]}
        for name in ("outside", "fetch")
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": chosen}))
    subprocess.run(["git", "init", "-q"], check=True)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def repro(*arguments: str) -> list[str]:
        command = ["dvc", *(arguments or ("repro",))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]

    repro("init", "-q")
    assert repro() == ["outside", "fetch"]
    assert repro() == ["outside"]
    draw(ward / "ward/pre/new.png", 7)
    assert repro() == ["outside", "fetch"]
    assert Path("data/raw/pre/new.png").is_file()
    shutil.rmtree(ward / "ward")
    assert repro() == ["outside"]
    assert json.loads(Path("data/source.json").read_text())["images"]["pre"] == 2
