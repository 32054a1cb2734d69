"""Runs a model file as any client of it would: plain onnxruntime, and the contract that it carries."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from leukdetect import contract
from pipeline.stage import Problem, progress

FP32 = Path("models/leukdetect.onnx")
INT8 = Path("models/leukdetect.int8.onnx")


@dataclass(frozen=True)
class OnnxModel:
    """An open model file."""

    path: Path
    contract: contract.Contract
    session: onnxruntime.InferenceSession

    def predict(
        self, images: np.ndarray, outputs: tuple[str, ...] = ("probabilities",), batch: int = 32
    ) -> dict[str, np.ndarray]:
        """Runs uint8 [N, S, S, 3] (a memory map will do) through the graph.

        Returns:
            One float32 array per name in `outputs`, N first.
        """
        only_these = onnxruntime.RunOptions()
        only_these.add_run_config_entry("only_execute_path_to_fetches", "1")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
        for start in progress(range(0, len(images), batch), self.path.name, unit="batch"):
            chunk = np.ascontiguousarray(images[start : start + batch])
            for name, part in zip(outputs, self.session.run(list(outputs), {"image": chunk}, only_these), strict=True):
                parts[name].append(part)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def load(path: Path) -> OnnxModel:
    """Opens a model file.

    Raises:
        Problem: it is missing, or carries no contract or a broken one.
    """
    if not path.is_file():
        raise Problem(f"{path} is missing; `dvc repro export` makes it")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    try:
        return OnnxModel(path, contract.parse(session.get_modelmeta().custom_metadata_map), session)
    except contract.ContractError as error:
        raise Problem(f"{path}: {error}") from error


def leads_to(proto: onnx.ModelProto, output: str) -> set[str]:
    """Names of the nodes that a tensor is computed from, its own among them."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    wanted, before = [output], set()
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.name not in before:
            before.add(node.name)
            wanted.extend(node.input)
    return before
