import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from leukdetect import contract, images
from tests import tiny_model

REGENERATE = (
    'python -c "import json; from leukdetect import contract; contract.SCHEMA_FILE.write_text('
    "json.dumps(contract.Contract.model_json_schema(), indent=2, ensure_ascii=False) + '\\n')\""
)


def test_the_published_schema_is_that_of_the_contract() -> None:
    assert json.loads(contract.SCHEMA_FILE.read_text()) == contract.Contract.model_json_schema(), (
        f"leukdetect/contract.schema.json is out of date; make it anew with\n{REGENERATE}"
    )


def test_a_model_file_gives_its_contract_back(tmp_path: Path) -> None:
    written = tiny_model.write(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert contract.parse(session.get_modelmeta().custom_metadata_map) == written
    assert written.decode.behaviour == images.behaviour(tiny_model.SIZE)


def test_a_file_without_a_contract_is_named_as_not_ours(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    with pytest.raises(contract.ContractError, match=r"carries no 'leukdetect' metadata.*pipeline\.export"):
        contract.parse({entry.key: entry.value for entry in model.metadata_props if entry.key != "leukdetect"})


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("version", 5, "version"),
        ("temperature", 0, "temperature"),
        ("surprise", 1, "surprise"),
        ("golden", [], "golden"),
        ("thresholds", {"malignant": 1.5}, r"thresholds\.malignant"),
    ],
)
def test_a_broken_contract_is_refused_where_it_breaks(tmp_path: Path, field: str, value: object, where: str) -> None:
    fields = tiny_model.write(tmp_path / "m.onnx").model_dump() | {field: value}
    with pytest.raises(contract.ContractError, match=f"broken at {where}"):
        contract.parse({contract.METADATA_KEY: json.dumps(fields)})


def test_metadata_that_is_no_json_is_refused() -> None:
    with pytest.raises(contract.ContractError, match="broken at contract"):
        contract.parse({contract.METADATA_KEY: "{"})


def test_repeated_keys_and_an_operating_point_without_both_kinds_are_refused(tmp_path: Path) -> None:
    benign, early, *_ = tiny_model.CLASSES
    with pytest.raises(ValidationError, match="class keys repeat"):
        tiny_model.write(tmp_path / "m.onnx", classes=[benign, early, early, benign])
    point = tiny_model.write(tmp_path / "m.onnx").thresholds
    with pytest.raises(ValidationError, match="some are malignant and some are not"):
        tiny_model.write(tmp_path / "m.onnx", classes=[early, early.model_copy(update={"key": "x"})], thresholds=point)


def test_a_golden_answer_needs_a_probability_for_every_class(tmp_path: Path) -> None:
    golden = tiny_model.write(tmp_path / "m.onnx").golden[0]
    with pytest.raises(ValidationError, match="3 probabilities for 4 classes"):
        tiny_model.write(tmp_path / "m.onnx", golden=[golden.model_copy(update={"probabilities": [0.5, 0.5, 0.0]})])


def test_a_file_of_version_2_speaks_of_what_all_files_were_about_then(tmp_path: Path) -> None:
    fields = tiny_model.write(tmp_path / "m.onnx").model_dump(mode="json") | {"version": 2}
    del fields["wording"]
    found = contract.parse({contract.METADATA_KEY: json.dumps(fields)})
    assert found.wording.malignant == "Resembles {label}; confirm by flow cytometry."


def test_a_file_of_version_1_as_it_was_written_then_is_still_read(tmp_path: Path) -> None:
    fields = tiny_model.write(tmp_path / "m.onnx").model_dump(mode="json") | {"version": 1}
    del fields["prediction_sets"], fields["thresholds"]["min_stain"]
    old = contract.parse({contract.METADATA_KEY: json.dumps(fields)})
    assert (old.version, old.prediction_sets, old.thresholds.min_stain) == (1, None, 0)


def test_prediction_sets_come_after_version_1_and_fit_the_classes(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="version 1 has no prediction_sets"):
        tiny_model.write(tmp_path / "m.onnx", prediction_sets=None)
    with pytest.raises(ValidationError, match="version 1 has no prediction_sets"):
        tiny_model.write(tmp_path / "m.onnx", version=1)
    short = contract.PredictionSets(error=0.05, thresholds=[0.1] * 3, images=[50] * 4)
    with pytest.raises(ValidationError, match="for 4 classes"):
        tiny_model.write(tmp_path / "m.onnx", prediction_sets=short)
