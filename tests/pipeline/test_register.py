"""Registration against a real MLflow: who becomes champion, who does not, and what is left behind."""

import base64
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import yaml
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.entities.model_registry import RegisteredModel

import leukdetect
from benchmarks.process import free_port
from leukdetect import contract, images
from pipeline import params, register
from pipeline.registry import moved, tracking
from pipeline.registry import versions as model_versions
from pipeline.registry.promotions import PROMOTIONS
from pipeline.registry.run_tags import flat
from pipeline.stage import Problem
from tests import measured, tiny_model
from tests.project import ROOT

COLOURS = {"benign": (200, 60, 60), "early": (60, 200, 60), "pre": (60, 60, 200), "pro": (5, 5, 5)}
GOOD, BETTER, BLIND_TO_PRO = 8.0, 9.0, -50.0  # the tiny model's bias; the last one never says pro


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model has been evaluated: what `register` finds. The tiny model gets every test image right."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_recipe(mode="enforce")
    write_data()
    write_reports()
    write_model(GOOD)
    return tmp_path


def write_recipe(**gate: object) -> None:
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["prepare"]["image_size"] = tiny_model.SIZE
    recipe["evaluate"]["bootstrap"] = 200
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    bounds = yaml.safe_load((ROOT / "gate.yaml").read_text())
    for key, value in gate.items():
        (bounds["fp32"] if key in bounds["fp32"] else bounds)[key] = value
    Path("gate.yaml").write_text(yaml.safe_dump(bounds))


def write_data() -> None:
    """Four patients a class with two images each, all of them held out."""
    rows, pixels = [], []
    for label, (key, (red, green, blue)) in enumerate(COLOURS.items()):
        for number in range(8):
            path = Path("data/raw") / key / f"{key}-{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny_model.jpeg((red, green, blue + number)))
            pixels.append(images.resize(images.decode(path.read_bytes()), tiny_model.SIZE))
            patient = f"{key}-p{number // 2}"
            rows.append([f"{key}/{path.name}", key, label, "0" * 64, patient, patient, "test"])
    Path("data/prepared").mkdir()
    np.save("data/prepared/images.npy", np.stack(pixels))
    with Path("data/prepared/split.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "class", "label", "sha256", "patient", "group", "split"], *rows])
    source = {"source": "demo", "origin": "rendered by a test", "synthetic": True, "thumbnails": True}
    source |= {"sha256": "d" * 64, "images": {}}
    Path("data/source.json").write_text(json.dumps(source))


def write_reports(balanced_accuracy: float = 0.9) -> None:
    found = measured.report(measured.good({"fp32.balanced_accuracy": balanced_accuracy}))
    files = {
        "metrics.json": json.dumps(found.plain()),
        "headline.json": json.dumps(found.headline()),
        "history/train_head.csv": "epoch,loss,seconds\n0,1.5,3\n1,1.0,3\n",
        "figures/roc.png": "png",
        "plots/roc.csv": "fpr,tpr\n",
        "figures/mistakes.png": "png",
        "validation.json": "{}",
        "model_card.md": "# card",
        "datasheet.md": "# sheet",
        "datasheet.html": "<html>",
        "report.html": "<html>",
        "predictions.csv": "path\n",
    }
    for name, text in files.items():
        path = Path("reports") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_model(bias: float, **changes: Any) -> None:
    tiny_model.write(register.FP32, bias=bias, **changes)
    tiny_model.write(register.INT8, bias=bias, precision="int8", **changes)


def aliases() -> dict[str, str]:
    model: RegisteredModel = tracking.client().get_registered_model("leukdetect")
    return {name: str(version) for name, version in model.aliases.items()}


def versions() -> list[str]:
    return sorted(str(version.version) for version in tracking.client().search_model_versions("name = 'leukdetect'"))


def downloaded(project: Path, version: str) -> Path:
    """What of a version MLflow's own client gets, without a look at our code."""
    uri = f"sqlite:///{project}/mlflow.db"
    folder = mlflow.artifacts.download_artifacts(
        f"models:/leukdetect/{version}/artifacts", tracking_uri=uri, registry_uri=uri
    )
    return Path(folder)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def registration() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(register.REGISTRATION.read_text())
    return result


def promotions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROMOTIONS.read_text().splitlines()]


def test_the_first_model_that_passes_becomes_champion(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register.main()
    assert aliases() == {"champion": "1"}
    output = capsys.readouterr()
    assert "Version 1 is champion now." in output.out
    assert "There is no champion to compare with." in output.out
    assert output.err == ""

    written = registration()
    assert (written["version"], written["alias"], written["gate"]) == ("1", "champion", "passed")
    assert {check["name"] for check in written["checks"]} >= {"balanced accuracy", "recall of pro", "INT8 drop"}
    (line,) = promotions()
    assert (line["version"], line["from_version"], line["balanced_accuracy"]) == ("1", None, 0.9)
    assert line["run_id"] == written["run_id"]


def test_one_run_holds_the_whole_pass(project: Path) -> None:
    register.main()
    client = tracking.client()
    run = client.get_run(registration()["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["gate"] == "passed"
    assert run.data.metrics["fp32/balanced_accuracy"] == 0.9
    shown = set(run.data.metrics) - {"train_head/loss", "train_head/seconds"}
    assert shown == set(flat(json.loads(Path("reports/headline.json").read_text()), "/"))
    assert len(shown) == 16
    assert run.data.params["fine_tune.optimizer"] == "adam"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train_head/loss")] == [1.5, 1.0]
    assert run.inputs
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "0" * 16
    assert tree(Path(mlflow.data.get_source(dataset).load())) == tree(project / "data/raw")
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert top == {
        *("figures", "plots", "history", "validation.json", "params.yaml", "source.json"),
        *(
            "headline.json",
            "metrics.json",
            "model_card.md",
            "datasheet.md",
            "datasheet.html",
            "report.html",
            "predictions.csv",
        ),
    }

    version = client.get_model_version("leukdetect", "1")
    assert version.run_id == run.info.run_id
    described = client.get_registered_model("leukdetect").description
    assert described.startswith("Acute lymphoblastic leukaemia on peripheral blood smears: Benign (hematogone), ")
    assert described.endswith("subtype confirmed by flow cytometry.")
    assert str(version.description).startswith("Trained on rendered images: its numbers have no clinical meaning.")
    assert version.tags["leukdetect.data_sha256"] == "0" * 64  # what the file says of itself
    assert version.tags["leukdetect.git_commit"] == "0" * 40
    assert (version.tags["fp32.balanced_accuracy"], version.tags["int8_drop"]) == ("0.9000", "0.0100")


def test_a_description_that_somebody_wrote_stays(project: Path) -> None:
    tracking.client().create_registered_model("leukdetect", description="Ward 4's")
    register.main()
    assert tracking.client().get_registered_model("leukdetect").description == "Ward 4's"


def test_the_run_that_the_model_file_names_is_used_with_what_it_holds_already(project: Path) -> None:
    recipe = register.params.load()
    run = tracking.run_id(recipe, "0" * 64)
    tracking.log_epoch(run, "train_head", 0, {"loss": 1.5})
    tracking.client().set_terminated(run)
    write_model(GOOD, provenance=provenance(mlflow_run=run))
    register.main()
    assert registration()["run_id"] == run
    points = tracking.client().get_metric_history(run, "train_head/loss")
    assert sorted(point.step for point in points) == [0, 1]


def provenance(**changes: str) -> contract.Provenance:
    fields = {"source": "tests", "data_sha256": "0" * 64, "params_sha256": "0" * 64, "git_commit": "0" * 40}
    return contract.Provenance(
        synthetic=True, created="2026-01-01T00:00:00Z", **{"mlflow_run": "none", **fields, **changes}
    )


@pytest.fixture
def pyfunc(project: Path) -> Any:
    register.main()
    return mlflow.pyfunc.load_model("models:/leukdetect@champion")


def test_the_champion_gives_the_librarys_answers_to_images_of_any_size_and_to_files(
    pyfunc: Any,
) -> None:
    library = leukdetect.open(register.FP32)
    pixels = np.load("data/prepared/images.npy")
    answers = pyfunc.predict(pixels)
    assert [answer["class"] for answer in answers] == [key for key in COLOURS for _ in range(8)]
    assert {answer["decision"] for answer in answers} == {"report", "refer"}
    assert answers[0].keys() == {column.name for column in pyfunc.metadata.signature.outputs}
    files = [path.read_bytes() for path in sorted(Path("data/raw").rglob("*.jpg"))[:4]]
    large = np.stack([np.asarray(images.decode(file)) for file in files])
    assert large.shape[1:3] != pixels.shape[1:3]
    encoded = np.array([base64.b64encode(file).decode() for file in files], dtype=object)
    for given, sources in ((large, large), (np.array(files, dtype=object), files), (encoded, files)):
        for answer, source in zip(pyfunc.predict(given), sources, strict=True):
            expected = library.predict(source).model_dump()
            assert {**answer, "disclaimer": None} == {"class": expected.pop("key"), **expected, "disclaimer": None}


def test_the_input_example_is_one_of_the_golden_images_and_is_answered_as_those_are(pyfunc: Any) -> None:
    example = pyfunc.input_example
    golden = leukdetect.open(register.FP32).contract.golden[0]
    assert example.tolist() == [golden.image]
    (answer,) = pyfunc.predict(example)
    assert list(answer["probabilities"].values()) == pytest.approx(golden.probabilities, abs=1e-4)
    wrapped = base64.encodebytes(base64.b64decode(golden.image)).decode()  # as the command `base64` prints it
    assert "\n" in wrapped.strip()
    assert list(pyfunc.predict(np.array([wrapped], dtype=object))) == [answer]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.full((2, 32, 32, 3), 0.7), "image 0: the array is float64"),
        (
            np.full((32, 32, 3), 7, np.uint8),
            "image 0: the array is uint8 \\[32, 3\\]; an image is uint8 \\[height, width",
        ),
        (np.full((1, 32, 32, 3), 256), "image 0: the array is int64"),
        (np.array([b"no image"], dtype=object), "image 0: the content is not"),
        (np.array(["params.yaml"], dtype=object), "image 0: the text is not base64"),
    ],
)
def test_the_champion_refuses_what_is_no_image(pyfunc: Any, given: np.ndarray, wanted: str) -> None:
    with pytest.raises(mlflow.MlflowException, match=wanted):
        pyfunc.predict(given)


def test_mlflows_own_server_sends_decisions_and_refuses_floats(pyfunc: Any, project: Path) -> None:
    """From another folder, so that it has nothing of this project but what the version carries."""
    pixels = np.load("data/prepared/images.npy")[[0, 31]]
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/leukdetect@champion"]
    with listening([*command, "--env-manager", "local", "--port", str(port)], port, project / "elsewhere"):

        def ask(inputs: list[Any]) -> requests.Response:
            return requests.post(f"http://127.0.0.1:{port}/invocations", json={"inputs": inputs}, timeout=30)

        jpeg = base64.b64encode(next(Path("data/raw/pre").iterdir()).read_bytes()).decode()
        answers = [*ask(pixels.tolist()).json()["predictions"], *ask([jpeg]).json()["predictions"]]
        assert [answer["class"] for answer in answers] == ["benign", "pro", "pre"]
        assert [answer["decision"] for answer in answers] == ["report", "refer", "report"]
        assert answers[1]["reasons"][0]["code"] == "too_dark"
        refused = ask((pixels / 255).tolist())
    assert refused.status_code == 400
    assert "image 0: the array is float64 [32, 32, 3]; an image is uint8" in refused.json()["message"]


def test_the_version_holds_both_files_under_the_names_that_the_server_reads(project: Path) -> None:
    register.main()
    folder = Path(mlflow.artifacts.download_artifacts("models:/leukdetect@champion"))
    assert (folder / "artifacts/leukdetect.onnx").read_bytes() == register.FP32.read_bytes()
    assert (folder / "artifacts/leukdetect.int8.onnx").read_bytes() == register.INT8.read_bytes()
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == [
        *("mlflow", "numpy", "onnxruntime", "pillow", "pydantic", "simplejpeg")
    ]
    assert (folder / "code/leukdetect/answer.py").is_file()


def test_a_model_that_is_worse_than_the_champion_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register.main()
    write_model(BLIND_TO_PRO)
    with pytest.raises(
        Problem, match=r"refuses version 2.*new − champion\. Version 2 is 'challenger'; version 1 stays"
    ):
        register.main()
    assert aliases() == {"champion": "1", "challenger": "2"}
    output = capsys.readouterr().out
    assert [line.split("  ")[1] for line in output.splitlines() if "FAILS" in line] == [
        "balanced accuracy, new − champion"
    ]
    assert "-0.2500" in output
    assert "Compared with champion version 1 on the same test images." in output
    written = registration()
    assert (written["version"], written["alias"], written["gate"]) == ("2", "challenger", "failed")
    assert tracking.client().get_run(written["run_id"]).data.tags["gate"] == "failed"
    assert len(promotions()) == 1


def test_a_model_below_a_floor_is_refused_even_with_no_champion(project: Path) -> None:
    write_reports(balanced_accuracy=0.5)
    with pytest.raises(Problem, match=r"It falls short in: balanced accuracy.*there is no champion"):
        register.main()
    assert aliases() == {"challenger": "1"}
    assert promotions() == []


def test_a_better_model_is_promoted_and_the_old_one_is_kept_as_previous(project: Path) -> None:
    write_model(BLIND_TO_PRO)
    register.main()
    write_model(GOOD)
    register.main()
    assert aliases() == {"champion": "2", "previous": "1"}
    write_model(BETTER)
    register.main()
    assert aliases() == {"champion": "3", "previous": "2"}
    assert [(line["from_version"], line["version"]) for line in promotions()] == [(None, "1"), ("1", "2"), ("2", "3")]


def test_registering_the_same_file_again_changes_nothing(project: Path) -> None:
    register.main()
    before = (aliases(), versions(), len(promotions()), registration()["run_id"])
    register.main()
    assert (aliases(), versions(), len(promotions()), registration()["run_id"]) == before
    points = tracking.client().get_metric_history(before[3], "fp32/balanced_accuracy")
    assert len(points) == 1


def test_a_refused_model_passes_later_when_the_bounds_allow_it(project: Path) -> None:
    register.main()
    write_model(BLIND_TO_PRO)
    with pytest.raises(Problem):
        register.main()
    write_recipe(mode="off", reason="the ward needs it today")
    register.main()
    assert versions() == ["1", "2"]
    assert aliases() == {"champion": "2", "previous": "1"}


def test_a_champion_that_falls_below_a_raised_bar_is_not_removed(project: Path) -> None:
    register.main()
    write_recipe(min_balanced_accuracy=0.95)
    with pytest.raises(Problem, match="Version 1 was champion before and stays it"):
        register.main()
    assert aliases() == {"champion": "1"}


@pytest.mark.parametrize(("bias", "verdict"), [(BETTER, "pass"), (BLIND_TO_PRO, "refuse")])
def test_a_dry_run_says_what_it_would_do_and_moves_nothing(
    project: Path, bias: float, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register.main()
    write_model(bias)
    write_recipe(mode="dry-run")
    register.main()
    said = capsys.readouterr().out
    assert f"the gate would {verdict} it. Version 2 is kept, and no alias moves; version 1 stays champion." in said
    assert aliases() == {"champion": "1"}
    assert len(promotions()) == 1


def test_with_the_gate_off_the_champion_moves_and_it_is_said_who_and_why(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTOR", "dr-who")
    write_recipe(mode="off", reason="the ward needs it today")
    write_reports(balanced_accuracy=0.1)
    register.main()
    assert aliases() == {"champion": "1"}
    assert "The gate is off: nothing was checked. The reason given: the ward needs it" in capsys.readouterr().out
    assert registration()["checks"] == []
    tags = tracking.client().get_model_version("leukdetect", "1").tags
    assert (tags["gate"], tags["gate.by"], tags["gate.reason"]) == ("off", "dr-who", "the ward needs it today")
    (line,) = promotions()
    assert (line["gate"], line["who"], line["why"]) == ("off", "dr-who", "the ward needs it today")

    write_recipe(mode="enforce")
    write_reports()
    register.main()
    tags = tracking.client().get_model_version("leukdetect", "1").tags
    assert (tags["gate"], tags.get("gate.reason")) == ("passed", None)


def test_the_gate_cannot_be_off_without_a_reason(project: Path) -> None:
    write_recipe(mode="off")
    with pytest.raises(Problem, match="mode: off needs a reason"):
        register.main()
    assert tracking.client().search_registered_models() == []


def test_the_promotions_log_is_the_registrys_and_so_every_clones(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    register.main()
    colleague = tmp_path_factory.mktemp("colleague")
    for path in ("models", "data", "reports"):
        shutil.copytree(path, colleague / path)
    for path in ("params.yaml", "gate.yaml"):
        shutil.copy(path, colleague)
    (colleague / PROMOTIONS).unlink()
    monkeypatch.chdir(colleague)
    write_model(BETTER)
    register.main()
    assert [line["version"] for line in promotions()] == ["1", "2"]


def test_who_becomes_champion_meanwhile_is_not_overruled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register.main()
    write_model(BETTER)
    compare = register.champion.compare

    def slow(*arguments: Any) -> Any:
        client = tracking.client()
        client.set_registered_model_alias("leukdetect", "champion", "2")  # somebody else's run, of this very version
        return compare(*arguments)

    monkeypatch.setattr(register.champion, "compare", slow)
    with pytest.raises(Problem, match="version 2 became champion while version 2 was judged; run this again"):
        register.main()
    assert len(promotions()) == 1


def learn_from_all(said: dict[str, str], folds: list[int] | None = None) -> None:
    """As if folds had been trained: no image is in the test split, and `said` of some of them, by name."""
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["estimate"]["folds"] = [0, 1] if folds is None else folds
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    table = Path("data/prepared/split.csv")
    side = "train" if recipe["estimate"]["folds"] else "test"
    table.write_text(re.sub("(?m)(test|train)$", side, table.read_text()))
    rows = [f"{image},{image[:-2]},{image[:-1]}p{int(image[-1]) // 2},{key}\n" for image, key in said.items()]
    Path("reports/predictions.csv").write_text("image,class,group,predicted\n" + "".join(rows))


SAID = {f"{key}-{number}": key for key in COLOURS for number in range(8)}


def test_models_that_learnt_from_all_images_are_compared_by_what_was_said_out_of_fold(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files themselves answer every image right: they may have learnt from it."""
    learn_from_all(SAID)
    register.main()
    write_model(BETTER)
    learn_from_all({image: "pre" if key == "pro" else key for image, key in SAID.items() if image != "benign-0"})
    with pytest.raises(Problem, match=r"refuses version 2\. It falls short in: balanced accuracy, new − champion"):
        register.main()
    said = capsys.readouterr().out
    assert "-0.2500" in said
    assert "of the 31 images in 16 groups that both were measured on. Only version 2 is right on 0 images, only" in said
    learn_from_all(SAID)
    register.main()  # what was measured of the same file has changed
    assert aliases() == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize("turn", [[[], [0, 1]], [[0, 1], []]], ids=["folds after a split", "a split after folds"])
def test_one_of_a_split_and_one_of_folds_are_compared_by_what_was_said(
    project: Path, turn: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    learn_from_all(dict(list(SAID.items())[::2]), turn[0])
    register.main()
    write_model(BETTER)
    learn_from_all(SAID, turn[1])
    register.main()
    assert "of the 16 images in 16 groups that both were measured on" in capsys.readouterr().out
    assert "balanced accuracy, new − champion" in {check["name"] for check in registration()["checks"]}


def test_where_the_champion_cannot_be_compared_with_the_gate_refuses_unless_it_allows_any_drop(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = r"refuses version 2\. It falls short in: balanced accuracy, new − champion\. .* version 1 stays champion"
    learn_from_all(SAID)
    Path("reports/predictions.csv").unlink()
    register.main()
    write_model(BETTER)
    learn_from_all({image: key for image, key in SAID.items() if key == "pro"})
    with pytest.raises(Problem, match=refused):
        register.main()
    why = r"the run of champion version 1, \w+, has no predictions\.csv"
    assert re.fullmatch(rf"Not compared with champion version 1: {why}\.", registration()["note"])
    row = rf"nan  FAILS  ≥ -0\.0200, and not known: {why} \(max_regression: 1 waives it\)"
    assert re.search(row, capsys.readouterr().out)
    assert [check["name"] for check in registration()["checks"] if check["value"] is None] == [
        "balanced accuracy, new − champion"
    ]

    write_recipe(mode="enforce", max_regression=1.0)
    learn_from_all({image: key for image, key in SAID.items() if key == "pro"})
    register.main()
    assert aliases() == {"champion": "2", "previous": "1"}
    write_recipe(mode="enforce", max_regression=0.02)
    write_model(GOOD + 2)
    learn_from_all({image: key for image, key in SAID.items() if key == "pre"})
    with pytest.raises(Problem, match="refuses version 3"):
        register.main()
    assert registration()["note"].endswith("champion version 2 was measured on no image that this one was measured on.")
    Path("reports/predictions.csv").write_text("path\n")
    write_model(GOOD + 3)
    with pytest.raises(Problem, match="it needs image, class, group, predicted"):
        register.main()


def test_a_champion_of_another_image_size_answers_from_the_original_files(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as larger:
        larger.setattr(tiny_model, "SIZE", 48)
        write_model(GOOD)
    register.main()
    write_model(BLIND_TO_PRO)
    with pytest.raises(Problem, match="new − champion"):
        register.main()
    assert "-0.2500" in capsys.readouterr().out


def test_a_label_set_never_takes_over_the_name_of_another(project: Path) -> None:
    write_model(GOOD, classes=tiny_model.CLASSES[::-1])
    register.main()
    write_model(BETTER)
    with pytest.raises(Problem, match=r"has the classes pro, pre, early, benign, .*choose another register\.name"):
        register.main()
    assert (aliases(), versions()) == ({"champion": "1"}, ["1"])


def test_a_champion_whose_files_are_gone_is_named(project: Path) -> None:
    register.main()
    shutil.rmtree(moved.ARTIFACTS)
    write_model(BETTER)
    with pytest.raises(Problem, match="the files of leukdetect version 1 could not be fetched"):
        register.main()
    assert aliases() == {"champion": "1"}


def test_a_version_whose_files_are_gone_is_registered_anew(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register.main()
    shutil.rmtree(moved.ARTIFACTS)
    register.main()
    assert "It is the very file of champion version 1, whose files are gone" in capsys.readouterr().out
    assert aliases() == {"champion": "2", "previous": "1"}
    assert (downloaded(project, "2") / "leukdetect.onnx").read_bytes() == register.FP32.read_bytes()
    register.main()
    assert versions() == ["1", "2"]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_project_that_was_moved_or_copied_works_on_its_own_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    register.main()
    there = project.with_name(f"{how} elsewhere")
    shutil.copytree(project, there)
    before = tree(project)
    if how == "moved":
        shutil.rmtree(project)
    monkeypatch.chdir(there)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")

    def registered() -> str:  # in a process of its own, since MLflow remembers where a run's files are
        command = [sys.executable, "-m", "pipeline.register"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    output = registered()
    assert f"MLflow's files are those in {there}/mlartifacts now: this project was moved" in output
    assert f"or copied from {project}\n" in output
    assert "Version 1 was champion before and stays it." in output
    assert str(project).encode() not in (there / "mlflow.db").read_bytes().replace(str(there).encode(), b"")
    write_model(BETTER)
    assert "MLflow's files are those" not in registered()
    for version in ("1", "2"):
        assert (downloaded(there, version) / "leukdetect.onnx").is_file()
    assert tree(project) == ({} if how == "moved" else before)


def test_a_database_that_left_its_files_behind_is_one_message(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register.main()
    before = tree(project)
    there = project.with_name("half")
    shutil.copytree(project, there, ignore=shutil.ignore_patterns("mlartifacts"))
    monkeypatch.chdir(there)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(Problem, match=f"keeps its files in {project}/mlartifacts, and there is no {there}/mlartifacts"):
        register.main()
    assert tree(project) == before


def test_reports_that_are_missing_are_named_and_nothing_is_registered(project: Path) -> None:
    Path("reports/metrics.json").unlink()
    with pytest.raises(Problem, match=r"reports/metrics\.json is missing; `dvc repro`"):
        register.main()
    assert tracking.client().search_registered_models() == []


def test_the_command_uses_the_embedded_mlflow_and_exits_1_when_refused(project: Path) -> None:
    write_reports(balanced_accuracy=0.5)
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "pipeline.register"]
    result = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search("  balanced accuracy +0.5000  FAILS  ≥ 0.6000\n", result.stdout)
    assert result.stderr.strip().startswith("error: gate.yaml refuses version 1.")
    assert len(result.stderr.strip().splitlines()) == 1
    assert aliases() == {"challenger": "1"}


@contextlib.contextmanager
def listening(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[Callable[[], None]]:
    """Runs one of MLflow's servers on a free port until the block's end, or until what it yields is called."""
    folder.mkdir(exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | environment, start_new_session=True
        )

    def stop() -> None:  # the workers too, which share its session
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield stop
    finally:
        stop()


@pytest.fixture
def stop_server(project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A real tracking server on loopback, which keeps the artifacts too."""
    shutil.copy(empty_database, project / "served.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{project}/served.db"]
    command += ["--artifacts-destination", str(project / "served")]
    with listening(command, port, project, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as stop:  # starts faster
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        yield stop


def test_a_server_holds_the_registry_and_its_death_is_one_message(
    stop_server: Callable[[], None], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register.main()
    write_model(BETTER)
    register.main()  # fetches the champion from the server
    assert aliases() == {"champion": "2", "previous": "1"}
    assert list((project / "served").rglob("leukdetect.onnx"))
    assert not (project / "mlartifacts").exists()
    assert "View" not in capsys.readouterr().out, "MLflow prints no addresses of its own"
    answers = mlflow.pyfunc.load_model("models:/leukdetect@champion").predict(np.load("data/prepared/images.npy"))
    assert len(answers) == 32

    stop_server()
    start = time.monotonic()
    with pytest.raises(Problem, match=r"MLflow at http://127\.0\.0\.1:\d+ could not be used"):
        register.main()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("fetch", "kind", "where"),
    [
        (
            {"source": "kaggle", "kaggle": "owner/smears"},
            "http",
            {"url": "https://www.kaggle.com/datasets/owner/smears"},
        ),
        ({"source": "archive", "archive": "https://x.example/a.zip"}, "http", {"url": "https://x.example/a.zip"}),
        ({"source": "archive", "archive": "/mnt/a.zip"}, "local", None),
        ({"source": "folder", "folder": "/mnt/ward"}, "local", None),
    ],
)
def test_a_data_set_names_where_its_images_can_be_opened(
    fetch: dict[str, str], kind: str, where: dict[str, str] | None
) -> None:
    found = model_versions._opens(params.load(ROOT / "params.yaml").fetch.model_copy(update=fetch))
    assert found == (kind, where or {"uri": "data/raw"})
    get_dataset_source_from_json(json.dumps(found[1]), found[0])
