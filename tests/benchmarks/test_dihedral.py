"""The eight symmetries of the square."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import dihedral
from benchmarks.dihedral import symmetries
from pipeline.model_file.onnx_model import FP32
from pipeline.stage import Problem
from tests import tiny_model, trained_folds


def test_they_are_eight_the_image_first_and_none_twice() -> None:
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    found = list(symmetries(images))
    assert (found[0] == images).all()
    assert len({each.tobytes() for each in found}) == 8
    assert all(sorted(each[1].ravel()) == sorted(images[1].ravel()) for each in found)


def test_a_model_that_learnt_from_every_image_is_not_measured_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_folds.recipe(2)
    tiny_model.write(FP32)
    with pytest.raises(Problem, match=r"with estimate\.folds in params\.yaml the model has learnt from every image"):
        dihedral.main()
