"""Looks in every `dvc repro` at what the recipe names outside this folder; by the records DVC sees what changed there.

Reads:  fetch.folder (and fetch.table), features.weights, evaluate.other_laboratory, where params.yaml names them
Writes: data/outside/images.json, data/outside/weights.json, data/outside/other_laboratory.json
Run:    python -m pipeline.outside

What is not on this machine is taken as it was: a colleague who pulled the results need not have the folder.
"""

import json

from pipeline import params, stage
from pipeline.data import outside


def main() -> None:
    recipe = params.load()
    for name, path in outside.named(recipe).items():
        file = outside.OUTSIDE / f"{name}.json"
        former = stage.read_json(file, "outside") if file.exists() else {}
        found = outside.look(path, recipe.fetch.table if name == "images" else None) if path else {}
        if found is None:
            print(f"{path} is not here, or empty (not mounted?)" + (": taken as it was" if former else ""))
            found = former
        if found != former or not file.exists():
            stage.write_json(file, found)
        print(f"{name}: {json.dumps(found) if found else 'none'}")


if __name__ == "__main__":
    stage.guard(main)
