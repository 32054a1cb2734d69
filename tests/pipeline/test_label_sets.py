"""Other label sets than the demo's, of two to twenty-one classes: evaluated, registered and served in their words."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import leukdetect
from leukdetect.contract import Class
from pipeline import evaluate, params, register
from pipeline.registry import tracking
from serving.app import create_app
from serving.models.served import Models
from serving.settings import Settings
from tests import tiny_model
from tests.project import ROOT
from tests.server import serve

pytestmark = pytest.mark.usefixtures("coarse_figures")
WORDING: dict[str, Any] = {
    "subject": "Normal cells of the blood",
    "malignant": "May be {label}: ask for a second reading.",
    "other": "Looks like {label}.",
    "intended_use": "Counting cells in a study.",
    "not_for": "a count that nobody has checked",
    "limits": ["Platelets are not looked for."],
    "disclaimer": "For this study only.",
}
OURS = re.compile(r"(?i:leukaemia|leukemia|flow cytometry|hematogone|immunophenotyp)|\bALL\b|Pre-B|Pro-B")
SETS = {
    "none malignant": [False] * 4,
    "all malignant": [True] * 3,
    "two": [False, True],
    "eight": [False] * 5 + [True] * 3,
    "twenty-one": [False] * 20 + [True],
}
HISTORY = "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds\n1,1,0.5,1,0.5,0.1,1\n"


@pytest.fixture(params=list(SETS.values()), ids=list(SETS))
def classes(
    request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Class]:
    """A project with a label set of its own in the current folder: prepared images, and model files for them."""
    found = [
        Class(key=f"kind_{number}", label=f"Kind {number}", malignant=malignant)
        for number, malignant in enumerate(request.param)
    ]
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["classes"] = [each.model_dump() | {"folders": [each.key]} for each in found]
    recipe["wording"] = WORDING
    recipe["fetch"] |= {"source": "folder", "folder": "ward", "origin": "Our ward", "licence": "None"}
    recipe["fetch"] |= {"thumbnails": False, "synthetic": False}
    recipe["prepare"]["image_size"] = tiny_model.SIZE
    recipe["evaluate"]["bootstrap"] = 100
    gate = (ROOT / "gate.yaml").read_text().replace("mode: enforce", "mode: dry-run")
    Path("gate.yaml").write_text(gate)
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    params.load()

    rng = np.random.default_rng(2)
    rows, pixels = [], []
    for label, each in enumerate(found):
        for split in ("train", "val", "test"):
            for image in range(6):
                group = f"{each.key}-{split}-{image // 2}"
                rows.append([f"{group}-{image}.png", each.key, label, rng.bytes(32).hex(), "", group, split])
                noise = rng.normal(rng.uniform(60, 190, 3), 15, (tiny_model.SIZE, tiny_model.SIZE, 3))
                pixels.append(np.clip(noise, 0, 255).astype(np.uint8))
    Path("data/prepared").mkdir(parents=True)
    np.save("data/prepared/images.npy", np.array(pixels))
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv("data/prepared/split.csv", index=False)
    source = recipe["fetch"] | {"sha256": "ab" * 32, "images": {each.key: 18 for each in found}}
    Path("data/source.json").write_text(json.dumps(source))
    for phase in ("train_head", "fine_tune"):
        path = Path(f"reports/history/{phase}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HISTORY)
    said: dict[str, Any] = {name: WORDING[name] for name in ("intended_use", "disclaimer")}
    said |= {"wording": {name: WORDING[name] for name in ("subject", "malignant", "other")}}
    for precision, path in (("fp32", evaluate.FP32), ("int8", evaluate.INT8)):
        tiny_model.write(path, precision=precision, classes=found, **said)
    return found


def test_a_label_set_is_evaluated_registered_and_served_in_its_own_words(classes: list[Class], tmp_path: Path) -> None:
    mixed = {each.malignant for each in classes} == {True, False}
    evaluate.main()
    register.main()
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert ("malignant_sensitivity" in metrics["fp32"], "operating_point" in metrics) == (mixed, mixed)
    card = Path("reports/model_card.md").read_text()
    assert ("alignan" in card) == mixed
    checks = {each["name"] for each in json.loads(Path("reports/registration.json").read_text())["checks"]}
    assert ("malignant sensitivity" in checks) == mixed

    answers, pages = ask(tmp_path)
    for answer in answers:
        assert (answer["p_malignant"] is None, answer["malignant"] is None) == (not mixed, not mixed)
        sentence = WORDING["malignant" if classes[int(answer["class"].split("_")[1])].malignant else "other"]
        if answer["decision"] == "report":
            assert answer["wording"] == sentence.replace("{label}", answer["label"])
    assert any(answer["decision"] == "report" for answer in answers)
    texts = (path for path in Path("reports").rglob("*") if path.is_file() and path.suffix not in (".png", ".svg"))
    pages |= {path.name: path.read_text() for path in texts}
    client = tracking.client()
    registered, (version,) = client.get_registered_model("leukdetect"), client.search_model_versions()
    pages["registry"] = str((dict(registered), dict(version)))
    pages["run"] = str(client.get_run(str(version.run_id)).data.to_dictionary())
    found = {name: OURS.findall(text) for name, text in (pages | {"answers": json.dumps(answers)}).items()}
    assert {name: words for name, words in found.items() if words} == {}


def ask(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The answers to images of several colours, and what the server says of itself."""
    models = Models(leukdetect.open(evaluate.FP32))
    with serve(create_app(Settings(feedback_db=folder / "feedback.db"), models)) as client:
        answers = []
        for number in range(8):
            data = tiny_model.jpeg((60 + 15 * number, 90, 50 + 20 * number))
            answered = client.post("/predict", content=data, headers={"Content-Type": "image/jpeg"})
            assert answered.status_code == 200, answered.text
            answers.append(answered.json())
        known = client.get("/openapi.json").json()["paths"]
        paths = {path.replace("{model}", "leukdetect") for path, methods in known.items() if "get" in methods}
        static = (f"/static/{file.name}" for file in (ROOT / "serving/static").iterdir())
        pages = {path: client.get(path).text for path in (*paths, *static, "/openapi.json", "/docs", "/status")}
        pages["/explain"] = client.post("/explain", content=data, headers={"Content-Type": "image/jpeg"}).text
        pages["not an image"] = client.post("/predict", content=b"none").text
        assert client.get("/health").json()["subject"] == WORDING["subject"]
    return answers, pages
