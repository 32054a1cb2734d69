"""A model file of a few kilobytes that keeps the whole contract: tests of whoever reads such files use it."""

import base64
import io
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from PIL import Image

from leukdetect import contract, drift, images
from leukdetect.similar import Index, metadata
from pipeline.model_file import similar_index
from pipeline.model_file.similar_index import SIDE

SIZE = 32
_SPREAD = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
CLASSES = [
    contract.Class(key="benign", label="Benign (hematogone)", malignant=False),
    contract.Class(key="early", label="Early Pre-B ALL", malignant=True),
    contract.Class(key="pre", label="Pre-B ALL", malignant=True),
    contract.Class(key="pro", label="Pro-B ALL", malignant=True),
]

# Class scores are linear in the mean colour: bright red is benign, bright green early, bright blue pre, dark pro.
# Unlikeness grows with the distance of the mean luma from the middle: black and white are 1.27.
_GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
tiny (uint8[N,{size},{size},3] image)
  => (float[N,{n}] probabilities, float[N,8] embedding, float[N] unlikeness, float[N,{n},4,4] cam{also})
{{
    pixels = Cast <to = 1> (image)
    axes = Constant <value = int64[2] {{1, 2}}> ()
    mean = ReduceMean <keepdims = 0> (pixels, axes)
    embedding = MatMul (mean, spread)
    scores = MatMul (mean, weights)
    logits = Add (scores, bias)
    probabilities = Softmax <axis = -1> (logits)
    last = Constant <value = int64[1] {{1}}> ()
    luma = ReduceMean <keepdims = 0> (mean, last)
    middle = Constant <value = float {{127.5}}> ()
    offset = Sub (luma, middle)
    distance = Abs (offset)
    hundred = Constant <value = float {{100.0}}> ()
    unlikeness = Div (distance, hundred)
    planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
    coarse = AveragePool <kernel_shape = [{pool}, {pool}], strides = [{pool}, {pool}]> (planes)
    maps = Conv (coarse, mix)
    cam = Relu (maps)
    {attend}
}}
"""
# The brighter, the more of it.
_ATTEND = """
    brightness = ReduceMean <keepdims = 0> (coarse, last)
    in_a_row = Constant <value = int64[2] {0, 16}> ()
    row = Reshape (brightness, in_a_row)
    scaled = Div (row, hundred)
    shares = Softmax <axis = 1> (scaled)
    in_a_grid = Constant <value = int64[3] {0, 4, 4}> ()
    attention = Reshape (shares, in_a_grid)
"""


def write(
    path: Path,
    *,
    precision: str = "fp32",
    bias: float = 8.0,
    index: Index | None = None,
    attention: bool = False,
    classes: list[contract.Class] = CLASSES,
    **changes: object,
) -> contract.Contract:
    """Writes the file and returns its contract. `changes` replace fields of the contract.

    A larger `bias` means pro, or the last of other `classes`, more often. Without an `index` of similar cases it is
    like a file from before; without `attention`, as after an average.
    """
    scale = 0.08
    weights = np.array([[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1]], np.float32) * scale
    n, mixed = len(classes), {each.malignant for each in classes} == {True, False}
    if n != len(CLASSES):
        weights = np.random.default_rng(n).normal(0, scale, (3, n)).astype(np.float32)
    initializers = {
        "spread": _SPREAD,
        "weights": weights,
        "bias": np.array([0] * (n - 1) + [bias], np.float32),
        "mix": weights.T.reshape(n, 3, 1, 1).copy(),
    }
    more = {"also": ", float[N,4,4] attention", "attend": _ATTEND} if attention else {"also": "", "attend": ""}
    model = onnx.parser.parse_model(_GRAPH.format(size=SIZE, pool=SIZE // 4, n=n, **more))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in initializers.items())
    onnx.checker.check_model(model, full_check=True)

    session = onnxruntime.InferenceSession(model.SerializeToString())
    golden = []
    for colour in ((200, 60, 60), (60, 60, 200)):
        data = jpeg(colour)
        pixels = images.resize(images.decode(data), SIZE)[None]
        probabilities, unlikeness = session.run(["probabilities", "unlikeness"], {"image": pixels})
        golden.append(
            contract.Golden(
                image=base64.b64encode(data).decode(),
                probabilities=probabilities[0].tolist(),
                unlikeness=float(unlikeness[0]),
            )
        )
    fields: dict[str, object] = {
        "name": "leukdetect",
        "precision": precision,
        "classes": classes,
        "decode": contract.Decode(size=SIZE, behaviour=images.behaviour(SIZE), scaled=True),
        "temperature": 1.0,
        "target_sensitivity": 0.99 if mixed else None,
        "thresholds": contract.Thresholds(
            malignant=0.4 if mixed else None, confidence=0.5, brightness=(20, 240), min_sharpness=0.0
        ),
        "prediction_sets": contract.PredictionSets(error=0.05, thresholds=[0.3] + [0.1] * (n - 1), images=[50] * n),
        "reference": _reference(n),
        "golden": golden,
        "golden_tolerance": 0.01,
        "validation": {"balanced_accuracy": 0.9},
        "provenance": contract.Provenance(
            source="tests",
            synthetic=True,
            data_sha256="0" * 64,
            params_sha256="0" * 64,
            git_commit="0" * 40,
            mlflow_run="none",
            created="2026-01-01T00:00:00Z",
        ),
        "intended_use": "tests",
    }
    result = contract.Contract.model_validate(fields | changes)
    cases = metadata(index) if index else {}
    onnx.helper.set_model_props(model, {contract.METADATA_KEY: result.model_dump_json()} | cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return result


def endless(file: onnx.ModelProto) -> None:
    """Its probabilities wait for a loop of 2**62 turns."""
    loop = onnx.parser.parse_graph(
        """
        loop (float[1] zero) => (float[1] spun)
        <int64 turns = {4611686018427387904}, bool go = {1}>
        {
            spun = Loop (turns, go, zero) <body = turn (int64 i, bool on, float[1] value) => (bool still, float[1] next)
            { still = Identity (on)  next = Sin (value) }>
        }
        """
    )
    graph = file.graph
    for node in graph.node:
        node.output[:] = ["calm" if name == "probabilities" else name for name in node.output]
    graph.initializer.extend(loop.initializer)
    graph.node.append(onnx.helper.make_node("ReduceMin", ["calm"], ["least"], keepdims=1))
    graph.node.append(onnx.helper.make_node("Reshape", ["least", "one"], ["zero"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    graph.node.extend(loop.node)
    graph.node.append(onnx.helper.make_node("Add", ["calm", "spun"], ["probabilities"]))


def index(*, thumbnails: bool) -> Index:
    """Of eight images of one colour, two a class in the class's own; the first digit of the id is the class."""
    strengths = (120, 220)
    colours = [tuple(strength * (part == label) for part in range(3)) for label in range(4) for strength in strengths]
    pixels = np.full((8, SIDE, SIDE, 3), np.array(colours)[:, None, None], np.uint8)
    embedding = (pixels.mean(axis=(1, 2)) + 1) @ _SPREAD
    sha256 = [f"{label}{copy}" * 32 for label in range(4) for copy in range(2)]
    return similar_index.fit(embedding, np.arange(8) // 2, sha256, pixels if thumbnails else None)


def _reference(classes: int) -> contract.Reference:
    """As if the validation images had filled each signal's range evenly, and 50 images were a window."""
    steps = np.linspace(0, 1, contract.QUANTILES)
    highest = {"brightness": 255, "sharpness": 1000, "stain_hue": 360}
    thresholds: dict[str, dict[str, float]] = {}
    for signal, test in drift.TESTS:
        thresholds.setdefault(signal, {})[test] = {"psi": 3.0, "excess": 0.7, "ks": 0.7, "mmd": 1.1}[test]
    return contract.Reference(
        images=200,
        groups=20,
        false_alarms=0.001,
        scalars={
            signal: contract.Scalar(
                quantiles=(steps * highest.get(signal, 1)).tolist(), shares=[0.0, *[0.05] * (len(steps) - 1), 0.0]
            )
            for signal in drift.SCALARS
        },
        class_shares=[1 / classes] * classes,
        bandwidth=1.0,
        embedding=[0.0] * (2 * drift.FEATURES),
        windows=[contract.Window(images=images, thresholds=thresholds) for images in (50, 200)],
    )


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> bytes:
    """A JPEG of one colour with a little texture, so that it is neither blank nor blurred."""
    noise = np.random.default_rng(1).integers(-20, 21, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
