"""The second key of a model file's metadata: the index of similar cases."""

import base64
import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from leukdetect import contract, model_file, similar
from leukdetect.registry import Located
from tests import tiny_model


def metadata(path: Path) -> dict[str, str]:
    found: dict[str, str] = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return found


@pytest.mark.parametrize("thumbnails", [True, False])
def test_a_model_file_gives_its_index_back(tmp_path: Path, thumbnails: bool) -> None:
    written = tiny_model.index(thumbnails=thumbnails)
    tiny_model.write(tmp_path / "m.onnx", index=written)
    index = similar.read(metadata(tmp_path / "m.onnx"), classes=4)
    assert index
    assert index.ids == written.ids == [f"{label}{copy}" * 6 for label in range(4) for copy in range(2)]
    assert index.thumbnails == written.thumbnails
    assert index.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for name in ("mean", "directions", "places"):
        np.testing.assert_allclose(getattr(index, name), getattr(written, name), rtol=1e-3, atol=1e-4)


def test_a_file_from_before_there_was_one_has_none_and_loads(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    assert similar.read(metadata(tmp_path / "m.onnx"), classes=4) is None
    assert model_file.load(Located(tmp_path / "m.onnx", None, None), "auto", 1).index is None


def broken(**changes: np.ndarray) -> dict[str, str]:
    whole = similar.metadata(tiny_model.index(thumbnails=True))
    with np.load(io.BytesIO(base64.b64decode(whole[similar.METADATA_KEY]))) as file:
        arrays = dict(file) | changes
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return {similar.METADATA_KEY: base64.b64encode(buffer.getvalue()).decode()}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({similar.METADATA_KEY: "no base64!"}, "cannot be read"),
        ({similar.METADATA_KEY: base64.b64encode(b"no archive").decode()}, "cannot be read"),
        (broken(ids=np.zeros((7, 6), np.uint8)), "does not fit together: 7 ids"),
        (broken(classes=np.full(8, 4, np.uint8)), r"does not fit together.*classes \[4\] of 4"),
        (broken(directions=np.zeros((9, 3), np.float16)), "does not fit together"),
        (broken(lengths=np.ones(3, np.uint32)), "does not fit together"),
    ],
    ids=["base64", "archive", "ids", "classes", "directions", "thumbnails"],
)
def test_a_broken_index_is_refused_and_says_so(entry: dict[str, str], why: str) -> None:
    with pytest.raises(contract.ContractError, match=why):
        similar.read(entry, classes=4)
