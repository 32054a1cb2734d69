"""The model's folder as MLflow keeps it: both ONNX files, what describes them, and `leukdetect`, which answers."""

import importlib.metadata
import logging
import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array, Map, Object, Property

from leukdetect import runtime
from pipeline.evaluation.report import METRICS
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel

REPORTS = Path("reports")
ARTIFACTS = {  # of a version, by the name under which MLflow's pyfunc model finds them
    "onnx": FP32,
    "int8": INT8,
    "metrics": METRICS,
    "model_card": REPORTS / "model_card.md",
    "report": REPORTS / "report.html",
    "datasheet": REPORTS / "datasheet.html",
}
NUMBER, TEXT = DataType.double, DataType.string
SIGNATURE = ModelSignature(
    # Images of any size, or files: an array of anything. With uint8 here, MLflow's server would cast 0.5 to 0.
    Schema([TensorSpec(np.dtype(object), (-1,))]),
    Schema(
        [
            *(ColSpec(TEXT, name) for name in ("class", "label", "decision", "wording", "disclaimer")),
            ColSpec(NUMBER, "unlikeness"),
            ColSpec(NUMBER, "p_malignant", required=False),
            *(ColSpec(Map(NUMBER), name) for name in ("probabilities", "quality")),
            ColSpec(DataType.boolean, "malignant", required=False),
            ColSpec(Array(TEXT), "not_excluded", required=False),
            ColSpec(Array(Object([Property(name, TEXT) for name in ("code", "brief", "detail")])), "reasons"),
        ]
    ),
)
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow", "pydantic", "simplejpeg")  # what leukdetect needs


def log(client: MlflowClient, run_id: str, name: str, model: OnnxModel) -> str:
    """Uploads the pyfunc model's folder (both ONNX files in its `artifacts/`, leukdetect in its `code/`).

    What `mlflow.pyfunc.log_model` does, but for an explicit server and with no look at what is installed.

    Returns:
        The logged model's id.
    """
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name, source_run_id=run_id, model_type="classification")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # About type hints of MLflow's own classes.
        warnings.simplefilter("ignore", UserWarning)
        logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # or it says that it looks at the example
        mlflow.pyfunc.save_model(
            path=f"{folder}/model",
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata={"classes": [c.key for c in model.contract.classes]},
            ),
            python_model=Path(__file__).with_name("pyfunc.py"),
            code_paths=[str(Path(runtime.__file__).parent)],
            artifacts={key: str(path) for key, path in ARTIFACTS.items()},
            signature=SIGNATURE,
            input_example=np.array([model.contract.golden[0].image], dtype=object),  # rendered; a file, as JSON has it
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id
