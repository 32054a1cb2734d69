"""A job's answers put together by patient: for labels that are the patient's and not the image's."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from leukdetect.contract import Contract
from pipeline import stage
from pipeline.data import splits
from pipeline.scoring.job import LISTING, part_name

FILE = "patients.csv"


def write(out: Path, pattern: str, contract: Contract) -> Path:
    """Writes FILE into a job's folder, a row a patient: images, those without an answer, referred, mean probabilities.

    The class is the one of the highest mean. `pattern` finds the patient in an image's path, as `prepare.patient` does.
    Raises Problem if it finds none in one.
    """
    keys = [each.key for each in contract.classes]
    shares = [f"p_{key}" for key in keys] + ["p_malignant"]
    sums = pd.DataFrame()
    for part in range(pq.read_metadata(out / LISTING).num_row_groups):
        rows = pq.read_table(out / part_name(part), columns=["path", "decision", *shares]).to_pandas()
        rows["patient"] = [splits.find(pattern, "patient", path) for path in rows["path"]]
        counts = rows.assign(images=1, unusable=rows["decision"].isna(), referred=rows["decision"] == "refer")
        mine = counts.groupby("patient")[["images", "unusable", "referred", *shares]].sum()
        sums = sums.add(mine, fill_value=0) if len(sums) else mine
    answered = sums["images"] - sums["unusable"]
    means = sums[shares].div(answered.where(answered > 0), axis=0)
    best = means[shares[:-1]].fillna(-1).to_numpy(float).argmax(axis=1)
    called = pd.Series([keys[i] for i in best], sums.index).where(answered > 0, "")
    table = sums[["images", "unusable", "referred"]].astype(int).assign(**{"class": called}, **means)
    if not contract.tells_malignancy:
        table = table.drop(columns="p_malignant")
    with stage.writing(out / FILE) as path:
        table.to_csv(path, float_format="%.6f")
    return out / FILE
