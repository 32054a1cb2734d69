"""Loads a model file and runs its golden set for `model_file`, in a process of its own with budgets."""

from pathlib import Path
from typing import Any

from leukdetect import model_file
from leukdetect.child import limit, serve
from leukdetect.registry import Located


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Why it is refused, if it is, and whether for its golden set alone."""
    memory = question["memory"]
    limit(memory, question["seconds"], files=False)
    try:
        model_file.load(Located(Path(question["path"])), threads=question["threads"])
    except model_file.RefusedError as error:
        return {"refused": str(error), "golden": isinstance(error, model_file.GoldenError)}
    except MemoryError:
        return {"refused": f"trial: it takes more than {memory / 1e6:.0f} MB of memory", "golden": False}
    return {"refused": None}


if __name__ == "__main__":
    serve(_answer)
