import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from leukdetect import contract, images, model_file, similar
from leukdetect.registry import Located
from leukdetect.runtime import cpus
from tests import tiny_model
from tests.leukdetect.formats.pictures import encoded, photograph
from tests.memory import forget_peak, peak


def load(path: Path) -> model_file.Model:
    return model_file.load(Located(path), "fp32", 2)


def test_a_good_file_loads_and_answers(tmp_path: Path) -> None:
    promise = tiny_model.write(tmp_path / "m.onnx")
    loaded = load(tmp_path / "m.onnx")
    pixels = images.resize(images.decode(base64.b64decode(promise.golden[0].image)), tiny_model.SIZE)
    probabilities, unlikeness = loaded.run(np.stack([pixels, pixels]))
    assert probabilities.shape == (2, 4)
    assert unlikeness.shape == (2,)
    np.testing.assert_allclose(probabilities[1], promise.golden[0].probabilities, atol=1e-5)


def test_runs_beside_one_another_answer_as_one_on_all_threads(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx", precision="int8")
    loaded = model_file.load(Located(tmp_path / "m.onnx"), threads=2, side_by_side=True)
    assert loaded.side_by_side
    side = tiny_model.SIZE
    batches = [np.random.default_rng(n).integers(0, 256, (1 + n % 4, side, side, 3), np.uint8) for n in range(40)]
    expected = [loaded.run(each) for each in batches]
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda each: loaded.run(each, beside=True), batches))
    for mine, theirs in zip(answers, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("precision", "threads", "asked"), [("fp32", 2, True), ("int8", 1, True), ("int8", 2, False)])
def test_a_second_session_is_opened_only_where_it_pays(
    tmp_path: Path, precision: str, threads: int, asked: bool
) -> None:
    tiny_model.write(tmp_path / "m.onnx", precision=precision)
    loaded = model_file.load(Located(tmp_path / "m.onnx"), threads=threads, side_by_side=asked)
    assert not loaded.side_by_side
    assert loaded.run(np.zeros((1, tiny_model.SIZE, tiny_model.SIZE, 3), np.uint8), beside=True)


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    tiny_model.write(path)
    file = onnx.load(path)
    change(file)
    onnx.save(file, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.ClearField("metadata_props"), "contract: .*carries no"),
        (lambda f: f.graph.output.pop(), "graph: it has no cam"),
        (lambda f: setattr(f.graph.input[0].type.tensor_type, "elem_type", 1), "graph: image is tensor"),
        (lambda f: setattr(f.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 64), "graph: image is .*64"),
        (lambda f: setattr(f.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), r"graph: image is .*\[1, "),
    ],
    ids=["no contract", "an output missing", "another type", "another size", "a fixed batch"],
)
def test_a_file_that_breaks_its_promise_is_refused_by_the_check_it_fails(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    with pytest.raises(model_file.RefusedError, match=message):
        load(changed(tmp_path / "m.onnx", change))


def test_attention_of_another_shape_than_the_maps_is_refused(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx", attention=True)
    file = onnx.load(tmp_path / "m.onnx")
    file.graph.output[-1].CopyFrom(onnx.helper.make_tensor_value_info("attention", onnx.TensorProto.FLOAT, ["N", 16]))
    file.graph.node[-1].input[0] = "shares"
    file.graph.node[-2].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 16])))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(model_file.RefusedError, match=r"graph: attention is .*16\], not .*'any', 'any'\]"):
        model_file.load(Located(tmp_path / "m.onnx"))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(model_file.RefusedError, match="file: onnxruntime cannot open"):
        load(tmp_path / "m.onnx")


def test_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(data.replace(b'"intended_use":"tests"', b'"intended_use":"t\xecsts"'))
    with pytest.raises(model_file.RefusedError, match="contract: the ONNX file's metadata is not UTF-8"):
        model_file.load(Located(tmp_path / "m.onnx"))


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx", decode=contract.Decode(size=tiny_model.SIZE, behaviour="0" * 64))
    with pytest.raises(model_file.RefusedError, match="decoder: this machine decodes images otherwise"):
        load(tmp_path / "m.onnx")


def test_a_file_from_before_colour_profiles_serves_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = images.behaviour(tiny_model.SIZE, version=1)
    assert before != images.behaviour(tiny_model.SIZE)
    tiny_model.write(tmp_path / "m.onnx", decode=contract.Decode(size=tiny_model.SIZE, behaviour=before))
    load(tmp_path / "m.onnx")
    assert "from before colour profiles were applied" in caplog.text


@pytest.mark.parametrize("scaled", [False, True])
def test_a_large_jpeg_is_scaled_only_where_the_file_was_trained_so(tmp_path: Path, scaled: bool) -> None:
    behaviour = images.behaviour(tiny_model.SIZE, version=3 if scaled else 2)
    how = contract.Decode(size=tiny_model.SIZE, behaviour=behaviour, scaled=scaled)
    tiny_model.write(tmp_path / "m.onnx", decode=how)
    data = encoded(photograph().resize((2000, 1500)), "JPEG")
    model = load(tmp_path / "m.onnx")
    seen = model.predict(data).probabilities
    sized = [model.predict(images.sized(data, tiny_model.SIZE, either)).probabilities for either in (False, True)]
    assert sized[0] != sized[1]
    assert seen == sized[scaled]


def test_a_golden_set_that_comes_out_otherwise_is_refused_with_the_difference(tmp_path: Path) -> None:
    golden = tiny_model.write(tmp_path / "m.onnx").golden
    wrong = [golden[0], golden[1].model_copy(update={"probabilities": golden[0].probabilities})]
    tiny_model.write(tmp_path / "m.onnx", golden=wrong)
    with pytest.raises(model_file.RefusedError, match=r"golden set: a probability differs by [01]\.\d+"):
        load(tmp_path / "m.onnx")


def test_a_golden_image_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    golden = tiny_model.write(tmp_path / "m.onnx").golden
    tiny_model.write(tmp_path / "m.onnx", golden=[golden[0].model_copy(update={"image": "bm90IGFuIGltYWdl"})])
    with pytest.raises(model_file.RefusedError, match="golden set: an image cannot be read"):
        load(tmp_path / "m.onnx")


def registered(path: Path, **fields: Any) -> Located:
    """A version's folder as it came from the registry; `fields`: of the INT8 file."""
    for precision, name in contract.FILES.items():
        tiny_model.write(path / name, precision=precision, **fields if precision == "int8" else {})
    return came(path)


def came(path: Path) -> Located:
    hashes = {each: hashlib.sha256((path / name).read_bytes()).hexdigest() for each, name in contract.FILES.items()}
    return Located(path, "1", "champion", hashes)


def children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_a_graph_of_a_version_that_never_ends_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(tmp_path)
    changed(tmp_path / contract.FILES["int8"], tiny_model.endless)
    before = children()
    for budget, said in (
        ("TRIAL_CPU_SECONDS", "used up its processor time"),
        ("TRIAL_SECONDS", "took longer than 2 s"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(model_file, budget, 2)
            with pytest.raises(model_file.RefusedError, match=f"trial: to load it and to run its golden set {said}"):
                model_file.load(came(tmp_path))
        assert children() == before


def test_an_index_of_a_version_that_unpacks_to_much_more_costs_this_process_nothing(tmp_path: Path) -> None:
    registered(tmp_path)
    buffer, shape = io.BytesIO(), {"descr": "<f2", "fortran_order": False, "shape": (8, 40_000_000)}
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("places.npy", "w") as places,
    ):
        np.lib.format.write_array_header_1_0(places, shape)
        for _ in range(640):
            places.write(bytes(1_000_000))
    entry = base64.b64encode(buffer.getvalue()).decode()
    file = onnx.load(tmp_path / contract.FILES["int8"])
    file.metadata_props.add(key=similar.METADATA_KEY, value=entry)
    onnx.save(file, tmp_path / contract.FILES["int8"])
    forget_peak()
    before = peak()
    with pytest.raises(model_file.RefusedError, match=r"index of similar cases cannot be read .*it has 640 MB"):
        model_file.load(came(tmp_path))
    assert peak() < before + 50e6


def test_more_memory_than_a_trial_may_take_is_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = registered(tmp_path, bias=3.0)
    monkeypatch.setattr(model_file, "TRIAL_MEMORY", 1_000_000)
    monkeypatch.setattr(model_file, "TRIAL_THREAD", 0)
    with pytest.raises(model_file.RefusedError, match=r"^(trial|file|warm-up): "):
        model_file.load(located)


def test_a_version_is_tried_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = registered(tmp_path, bias=4.0)
    model_file.load(located)
    monkeypatch.setattr(model_file, "_tried", set())  # as after a restart
    monkeypatch.setattr(model_file, "Child", lambda _: pytest.fail("it was tried again"))
    assert model_file.load(located).contract.precision == "int8"
    monkeypatch.setattr(onnxruntime, "__version__", "another")
    with pytest.raises(pytest.fail.Exception, match="it was tried again"):
        model_file.load(located)


def flip(path: Path) -> None:
    """200 bits in the middle of the file, where the weights are."""
    content = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).choice(len(content) // 2, 200, replace=False):
        content[len(content) // 4 + at] ^= 1
    path.write_bytes(content)


def another(path: Path) -> None:
    """It never refers."""
    promise = tiny_model.write(path, precision="int8")
    lax = promise.thresholds.model_copy(update={"confidence": 0.0})
    tiny_model.write(path, precision="int8", thresholds=lax)


@pytest.mark.parametrize("change", [flip, another])
def test_a_versions_file_that_is_not_what_came_is_refused(tmp_path: Path, change: Callable[[Path], object]) -> None:
    located = registered(tmp_path)
    change(tmp_path / contract.FILES["int8"])
    with pytest.raises(model_file.RefusedError, match=r"hash: leukdetect\.int8\.onnx is not the file that came"):
        model_file.load(located)


def test_threads_follow_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert cpus() == 1


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("max 100000", 8), ("", 8)]
)
def test_threads_follow_the_cgroups_quota(monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    with monkeypatch.context() as container:
        container.setattr(Path, "read_text", lambda path: quota if str(path) == "/sys/fs/cgroup/cpu.max" else None)
        found = cpus()
    assert found == expected
