"""`python -m pipeline.evaluation.compare` on small files."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.evaluation import compare
from pipeline.stage import Problem


def predictions(path: Path, predicted: str, actual: str = "bbbbpppp") -> Path:
    """Eight images of four patients, one letter a class."""
    table = {"image": [f"{i}" for i in range(8)], "class": list(actual), "group": [f"p{i // 2}" for i in range(8)]}
    pd.DataFrame(table | {"predicted": list(predicted)}).to_csv(path, index=False)
    return path


def test_it_tells_both_results_their_difference_and_whether_it_could_be_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = predictions(tmp_path / "a.csv", "bbbbpppp"), predictions(tmp_path / "b.csv", "bbbppppb")
    monkeypatch.setattr("sys.argv", ["compare", str(a), str(b)])
    compare.main()
    printed = capsys.readouterr().out
    assert "8 images in 4 groups, 0 rows left out" in printed
    assert "balanced accuracy of A       1.0000  [1.0000, 1.0000]" in printed
    assert "balanced accuracy of A − B   0.2500" in printed
    assert "Only A is right on 2 images, only B on 0: exact McNemar p = 0.5, images taken as independent." in printed


def test_images_that_only_one_answered_for_are_left_out_and_counted(tmp_path: Path) -> None:
    a = compare.read(predictions(tmp_path / "a.csv", "bbbbpppp"))
    assert compare.report(compare.join(a, a.iloc[1:])).startswith("7 images in 4 groups, 1 rows left out")


def test_files_of_other_data_are_refused(tmp_path: Path) -> None:
    a = compare.read(predictions(tmp_path / "a.csv", "bbbbpppp"))
    other = compare.read(predictions(tmp_path / "b.csv", "bbbbpppp", actual="bbbpbppp"))
    with pytest.raises(Problem, match=r"disagree on the class of 2 images, first 3"):
        compare.join(a, other)
    with pytest.raises(Problem, match=r"no image in common"):
        compare.join(a, a.rename(lambda path: f"x{path}"))


def test_a_file_that_is_no_table_of_predictions_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,class\n")
    with pytest.raises(Problem, match=r"x\.csv has no column group, predicted"):
        compare.read(tmp_path / "x.csv")
    with pytest.raises(Problem, match=r"y\.csv is missing"):
        compare.read(tmp_path / "y.csv")
