"""Held-out images for a haematologist: a list of those that deserve a look, and the cases of a blinded reader study.

Reads:  models/leukdetect.onnx, models/leukdetect.int8.onnx, data/prepared/, data/folds/, data/raw/
Writes: below data/, since file names and pictures are the patients':
        data/calls/calls.csv and calls.html: what was wrong, uncertain, unlike or in disagreement, to be filled in
        --read FILE: says how far the reader agrees; suspected.csv beside the file lists the labels that it contradicts
        --study READER …: data/study/: images without names, a form for each reader in an order of its own, and key.csv,
        which no reader gets; then `python -m pipeline.evaluation.reader_study data/study`
Run:    python -m pipeline.calls [--read data/calls/calls.csv | --study anna ben] [--most 100]
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import decoding, similar
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.data.source import RAW
from pipeline.evaluation import calls, held_out
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.held_out import HeldOut
from pipeline.model_file import onnx_model, similar_index
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.reporting import calls_page
from pipeline.stage import Problem

LIST, STUDY = Path("data/calls"), Path("data/study")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", type=Path, help="a list that a reader has filled in")
    parser.add_argument("--study", nargs="+", metavar="READER", help="readers to make a blinded study for")
    parser.add_argument("--most", type=int, default=100, help="images, at most")
    options = parser.parse_args()
    recipe = params.load()
    labels = {each.key: each.label for each in recipe.classes}
    if options.read:
        found = calls.read(options.read, labels)
        doubted, path = calls.suspected(found), options.read.with_name("suspected.csv")
        with stage.writing(path) as file:
            doubted.to_csv(file, index=False)
        print(f"{calls.agreement(found)}\n{path}: {len(doubted)} labels that the reader contradicts")
        return
    fp32, int8 = (onnx_model.load(path, list(labels)) for path in (FP32, INT8))
    images, split = prepared.read()
    held = held_out.measure(recipe, fp32, int8, images, split)
    if options.study:
        write_study(held.rows, held.fp32.answers, labels, options.study, options.most, recipe.seed)
    else:
        write_list(split, held, labels, options.most)


def write_list(split: pd.DataFrame, held: HeldOut, labels: dict[str, str], most: int) -> None:
    """Writes LIST, the images with the most reasons first."""
    rows, keys, ours, theirs = held.rows, np.array(list(labels)), held.fp32.answers, held.int8.answers
    path_of = dict(zip(prepared.images(split), split["path"], strict=True))
    near: np.ndarray | None = None
    alike = [list[str]() for _ in rows.index]
    for model, mine in held.fp32.models():
        if index := similar.read(model.session.get_modelmeta().custom_metadata_map, len(keys)):
            found = np.array([[row for row, _ in index.nearest(each)] for each in ours.embedding[mine]])
            near = np.zeros((len(rows), found.shape[1]), int) if near is None else near
            near[mine] = index.classes[found]
            for place, each in zip(np.flatnonzero(mine), found, strict=True):
                alike[place] = [path_of[index.ids[row]] for row in each]
    why = calls.why(ours, theirs, rows["label"].to_numpy(), near)
    table = pd.DataFrame(
        {
            "image": rows["path"].to_numpy(),
            "class": rows["class"].to_numpy(),
            "predicted": keys[ours.predicted],
            "confidence": ours.confidence.round(4),
            "int8_predicted": keys[theirs.predicted],
            "unlikeness": ours.unlikeness.round(3),
            "why": why,
            "similar": alike,
            calls.READER: "",
            "note": "",
        }
    )
    chosen = sorted(table.index[table["why"] != ""], key=lambda i: -len(why[i].split()))[:most]
    listed = table.loc[chosen]
    with writing_anew(LIST) as folder:
        plain = listed.assign(similar=listed["similar"].map("; ".join))
        plain.to_csv(folder / "calls.csv", index=False, encoding="utf-8-sig")  # Excel needs the mark
        (folder / "calls.html").write_text(calls_page.render(listed, ours, labels, len(rows)))
    print(f"{LIST}: {len(chosen)} of {len(rows)} held-out images, as calls.csv and calls.html")


def write_study(
    rows: pd.DataFrame, ours: Answers, labels: dict[str, str], readers: list[str], most: int, seed: int
) -> None:
    """Writes STUDY. A referral is the model's call, too."""
    keys = np.array(list(labels))
    even = similar_index.choose(rows["label"].to_numpy(), seed, most)
    chosen = np.random.default_rng(seed).permutation(even)  # so that a case's number tells nothing
    cases = [f"{number:04d}" for number in range(1, len(chosen) + 1)]
    said = np.where(ours.reported, keys[ours.predicted], "refer")[chosen]
    with writing_anew(STUDY) as folder:
        (folder / "images").mkdir()
        for case, path in zip(cases, rows["path"].iloc[chosen], strict=True):
            pixels = np.asarray(decoding.picture(RAW / path))  # alone, without what a file says beside them
            Image.fromarray(pixels).save(folder / f"images/{case}.png")
        told = {"patient": prepared.numbers(rows).iloc[chosen], "truth": rows["class"].iloc[chosen], "model": said}
        pd.DataFrame({"case": cases, **told}).to_csv(folder / "key.csv", index=False)
        for number, reader in enumerate(readers):
            order = np.random.default_rng([seed, number]).permutation(cases)
            pd.DataFrame({"case": order, "call": ""}).to_csv(folder / f"{reader}.csv", index=False)
    print(f"{STUDY}: {len(chosen)} cases for {', '.join(readers)}; a call is one of {', '.join(keys)}, or another word")


@contextmanager
def writing_anew(folder: Path) -> Iterator[Path]:
    """As `stage.writing`, of a folder. Raises Problem if it is there: a reader may have filled it in."""
    if folder.exists():
        raise Problem(f"{folder} is there already, and a reader may have filled it in. Move it, or remove it")
    with stage.writing(folder) as made:
        made.mkdir()
        yield made


if __name__ == "__main__":
    stage.guard(main)
