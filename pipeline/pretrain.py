"""Pretrains a base on folders of cells, for `features.weights`; goes on after an interruption.

Reads:  --labelled: folders of class folders; --unlabelled: folders of images
Writes: --out FILE.weights.h5, and beside it FILE.json: what it was made of, by whose images and licence, and how
Run:    python -m pipeline.pretrain --labelled FOLDER --out base.weights.h5 --origin "…" --licence "…"
"""

import argparse
import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import stage
from pipeline.data import cells, walk
from pipeline.network import bases, classifier, pretraining
from pipeline.network.backbones import BACKBONES
from pipeline.registry import tracking
from pipeline.stage import Problem

STATE = stage.STATE / "pretrain"


@stage.alone(STATE)
def main() -> None:
    options = _options()
    record = bases.record(options.out)
    images = cells.read(options.labelled, options.unlabelled, options.hold_out, 2 * options.size, STATE / "images.npy")
    counts = images.table()
    print(f"{counts.to_string()}{walk.lines(images.left_out)}")
    plan = pretraining.Plan(**{name: getattr(options, name) for name in pretraining.Plan.__dataclass_fields__})
    start = bases.about(options.start) if options.start else {}
    facts = {
        "origin": options.origin,
        "licence": options.licence,
        "command": shlex.join(["python", "-m", "pipeline.pretrain", *sys.argv[1:]]),
        **vars(plan),
        "sets": {name: rows.droplevel(0).to_dict("index") for name, rows in counts.groupby(level=0)},
        "left_out": dict(sorted(images.left_out.items())),
        "data_sha256": images.digest,
        "started_from": start,
    }
    key = stage.state_key(json.dumps(vars(plan)), images.digest, json.dumps(start))
    state = STATE / "runs" / key
    run = tracking.opened(
        "pretrain",
        (key,),
        {"leukdetect.data_sha256": images.digest, "mlflow.source.name": "pipeline/pretrain.py"},
        f"{options.out.name}: {plan.backbone} {plan.size}px, {', '.join(images.rows['set'].unique())}",
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()},
    )

    learner = pretraining.learner(plan, images, str(options.start) if options.start else None)
    with tracking.system_metrics(run):
        history = pretraining.fit(learner, plan, images, state, partial(tracking.log_epoch, run, "pretrain"))
    with stage.writing(options.out) as file:
        classifier.save_base_weights(learner.trunk, file, plan.backbone)
    stage.write_json(record, facts | bases.made(options.out, run) | {"history": history})
    tracking.close(run, [options.out, record])
    shutil.rmtree(state)
    (STATE / "images.npy").unlink()
    print(f"wrote {options.out} and {record}; features.weights takes the first")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folders: dict[str, Any] = {"type": Path, "nargs": "+", "default": [], "metavar": "FOLDER"}
    parser.add_argument("--labelled", help="each a folder of class folders", **folders)
    parser.add_argument("--unlabelled", help="each a folder of images; subfolders count for nothing", **folders)
    parser.add_argument("--out", type=Path, required=True, metavar=f"FILE{bases.SUFFIX}")
    parser.add_argument("--origin", required=True, help="whose images these are; for the model card")
    parser.add_argument("--licence", required=True, help="of the images")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="ResNet50")
    parser.add_argument("--size", type=int, default=64, help="pixels a side of one cell")
    parser.add_argument("--tiles", type=int, default=3, help="so many cells a side lie in one input of the network")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=72, help="cells a step, a multiple of tiles × tiles")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--colour", type=float, default=1.0, help="0: colours stay; 1: as between laboratories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="start", type=Path, metavar="WEIGHTS", help="start from a file of weights")
    parser.add_argument("--hold-out", type=float, default=0.1, help="share of each labelled class, the last by name")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE and its record")
    options = parser.parse_args()
    wrong = {
        "--origin and --licence must say whose images these are": not (
            options.origin.strip() and options.licence.strip()
        ),
        "give folders: --labelled, --unlabelled or both": not (options.labelled or options.unlabelled),
        "--size, --tiles and --epochs must be 1 or more": min(options.size, options.tiles, options.epochs) < 1,
        "--batch must be a multiple of tiles × tiles": options.batch < 1
        or options.batch % max(1, options.tiles) ** 2 > 0,
        "--hold-out must be 0 or more and below 1": not 0 <= options.hold_out < 1,
        "--learning-rate must be above 0 and below 1": not 0 < options.learning_rate < 1,
        "--colour must be from 0 to 2": not 0 <= options.colour <= 2,
        "--seed must be 0 or more and below 2147483648": not 0 <= options.seed < 2**31,
    }
    if said := [message for message, is_wrong in wrong.items() if is_wrong]:
        raise Problem("; ".join(said))
    bases.free(options.out, options.overwrite)
    tracking.check()
    return options


if __name__ == "__main__":
    stage.run(main)
