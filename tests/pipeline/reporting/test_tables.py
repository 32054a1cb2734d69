"""The tables behind the figures."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.reporting import tables

COLUMNS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"]


def test_a_phase_of_no_epochs_adds_none_to_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables.HISTORY.mkdir(parents=True)
    epochs = pd.DataFrame([[epoch, 0.5, 0.8, None, None, 1e-3, 2.0] for epoch in range(3)], columns=COLUMNS)
    epochs.to_csv(tables.HISTORY / "train_head.csv", index=False)
    epochs[:0].to_csv(tables.HISTORY / "fine_tune.csv", index=False)
    found = tables.history()
    assert found["step"].tolist() == [1, 2, 3]
    assert set(found["phase"]) == {"train_head"}
