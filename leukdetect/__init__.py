"""What a model file is and what it says: images, contract, decision, drift, similar cases.

    model = leukdetect.open("leukdetect.onnx")
    answer = model.predict("smear.jpg")  # as POST /predict: class, probabilities, decision, reasons

No web framework, no TensorFlow, nothing of `pipeline` or `serving`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"  # of the project; pyproject.toml, the server and releases read it here

# Before onnxruntime is imported anywhere: it would ask for a host by DNS, and write a device's id under the home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from leukdetect.model_file import Model


def open(path: str | Path, threads: int | None = None) -> "Model":
    """Opens a model file (.onnx), or the folder of a registered version, and checks it on its golden set.

    Args:
        threads: of the model; else as many as this process may use processors.

    Raises:
        leukdetect.model_file.RefusedError: it would not answer here as it did where it was built; the message says why.
    """
    from leukdetect import model_file, registry

    return model_file.load(registry.Located(Path(path)), threads=threads)
