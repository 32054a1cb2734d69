"""Drift: windows of images that the model was never shown, from the same source and from elsewhere."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel

from leukdetect import contract, drift, images
from leukdetect.contract import OBSERVED, Reference
from leukdetect.decoding import Decoded
from leukdetect.drift import Signals
from leukdetect.model_file import load
from leukdetect.registry import Located
from leukdetect.runtime import open_session, run
from pipeline.data import prepared, smears
from pipeline.model_file import drift_reference
from serving.app import create_app
from serving.inference.engine import Scores
from serving.metrics import Metrics
from serving.models.served import Models
from serving.observability import drift_window
from serving.settings import Settings
from tests import tiny_model
from tests.server import serve

SIZE = 48
BCCD = Path("../shared/data/bccd")  # ordinary smears of another laboratory, MIT; not part of the project
DEMO = Path("models/leukdetect.int8.onnx")  # made by dvc repro, not in git

Change = Callable[[np.ndarray], np.ndarray]


def unchanged(pixels: np.ndarray) -> np.ndarray:
    return pixels


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Out of focus by a pixel."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


def restained(pixels: np.ndarray) -> np.ndarray:
    """A quarter more eosin, a quarter less azure, by Beer–Lambert."""
    density = -np.log((pixels.astype(float) + 1) / 256) * (0.75, 1.25, 1.0)
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


@dataclass
class Smears:
    """Images of many virtual patients, in the order in which they come."""

    pixels: np.ndarray
    labels: np.ndarray
    patients: list[str]


@dataclass
class Reader:
    """A small honest model: pooled random filters, logistic regression, distance from the training images."""

    filters: np.ndarray
    head: LogisticRegression
    middle: np.ndarray
    spread: np.ndarray

    def __call__(self, pixels: np.ndarray) -> Signals:
        embedding = pooled(pixels, self.filters)
        distance = np.linalg.norm((embedding - self.middle) / self.spread, axis=1) / np.sqrt(len(self.spread))
        probabilities = self.head.predict_proba((embedding - self.middle) / self.spread)
        answers = {"probabilities": probabilities, "unlikeness": distance, "embedding": embedding}
        return drift_reference.signals(pixels, answers)


def pooled(pixels: np.ndarray, filters: np.ndarray) -> np.ndarray:
    patches = np.lib.stride_tricks.sliding_window_view(pixels[..., 1] / 255, (7, 7), axis=(1, 2))[:, ::3, ::3]
    answers = np.maximum(patches.reshape(*patches.shape[:3], 49) @ filters, 0)
    return np.concatenate([answers.mean(axis=(1, 2)), answers.max(axis=(1, 2))], axis=1)


def render(patients: range, classes: tuple[str, ...] = smears.CLASSES) -> Smears:
    """Ten images of each patient, patients in a random order."""
    everyone = [(key, patient) for key in classes for patient in patients]
    everyone = [everyone[i] for i in np.random.default_rng(0).permutation(len(everyone))]
    pixels = [
        smears.render(key, patient, session, index, SIZE, 5)
        for key, patient in everyone
        for session in smears.SESSIONS
        for index in range(1, 6)
    ]
    labels = np.repeat([smears.CLASSES.index(key) for key, _ in everyone], 10)
    return Smears(np.stack(pixels), labels, [f"{key}-{patient}" for key, patient in everyone for _ in range(10)])


@pytest.fixture(scope="module")
def reader() -> Reader:
    train = render(range(1, 17))
    filters = np.random.default_rng(0).normal(size=(49, 64))
    filters -= filters.mean(axis=0)  # edges and grain, not brightness
    embedding = pooled(train.pixels, filters)
    middle, spread = embedding.mean(axis=0), embedding.std(axis=0) + 1e-9
    head = LogisticRegression(max_iter=2000, C=0.1).fit((embedding - middle) / spread, train.labels)
    return Reader(filters, head, middle, spread)


@pytest.fixture(scope="module")
def validation() -> Smears:
    return render(range(17, 25))


@pytest.fixture(scope="module")
def fitted(reader: Reader, validation: Smears) -> Reference:
    return drift_reference.fit(reader(validation.pixels), validation.patients, 4, 0)


@pytest.fixture(scope="module")
def held_out() -> Smears:
    return render(range(25, 31))


def some(found: Signals, rows: np.ndarray) -> Signals:
    return Signals(found.scalars[rows], found.classes[rows], found.embedding[rows])


def alarms(found: Signals, against: Reference) -> set[str]:
    """The signals that alarm in one window."""
    compared = drift.compare(drift.encode(found, against), against)
    assert compared
    assert compared.images == len(found.classes)
    return set(compared.alarms())


def windows(patients: list[str], size: int, count: int) -> Iterator[np.ndarray]:
    """Rows of images, patient after patient, in another order each time."""
    rng = np.random.default_rng(1)
    groups = [np.flatnonzero(np.array(patients) == patient) for patient in dict.fromkeys(patients)]
    for _ in range(count):
        yield np.concatenate([groups[i] for i in rng.permutation(len(groups))])[:size]


def test_twenty_held_out_windows_of_the_same_source_raise_no_alarm(
    reader: Reader, fitted: Reference, held_out: Smears
) -> None:
    found = reader(held_out.pixels)
    for size in drift_reference.SIZES:
        for rows in windows(held_out.patients, size, 20):
            assert alarms(some(found, rows), fitted) == set()


def test_thresholds_that_took_neighbours_for_independent_would_cry_wolf(
    reader: Reader, fitted: Reference, validation: Smears, held_out: Smears
) -> None:
    each_alone = [str(i) for i in range(len(validation.pixels))]
    rows = drift.encode(reader(validation.pixels), fitted)
    limits = drift_reference.thresholds(rows, each_alone, 4, 50, np.random.default_rng(0))
    naive = fitted.model_copy(update={"windows": [contract.Window(images=50, thresholds=limits)]})
    found = reader(held_out.pixels)
    assert any(alarms(some(found, chosen), naive) for chosen in windows(held_out.patients, 50, 20))


@pytest.mark.parametrize(("change", "signal"), [(blurred, "sharpness"), (restained, "stain_hue")])
def test_blur_and_another_stain_raise_an_alarm_within_one_window(
    reader: Reader, fitted: Reference, held_out: Smears, change: Change, signal: str
) -> None:
    for rows in windows(held_out.patients, 100, 5):
        changed = np.stack([change(image) for image in held_out.pixels[rows]])
        assert signal in alarms(reader(changed), fitted)


@pytest.mark.parametrize("key", ["benign", "pro"])
def test_another_mix_of_classes_raises_an_alarm_within_one_window(reader: Reader, fitted: Reference, key: str) -> None:
    others = render(range(31, 51), (key,))
    assert "class" in alarms(reader(others.pixels), fitted)


def test_one_class_that_takes_over_is_seen_by_its_excess_where_psi_is_still_silent(fitted: Reference) -> None:
    [limits] = [each.thresholds["class"] for each in fitted.windows if each.images == 200]
    taken_over = drift.mean(fitted)
    shares = np.array(fitted.class_shares)
    taken_over[-len(fitted.embedding) - 4 : -len(fitted.embedding)] = 0.4 * shares + 0.6 * np.eye(4)[shares.argmin()]
    found = drift.statistics(taken_over, drift.mean(fitted), 4)
    assert found["class", "excess"] > limits["excess"]
    assert found["class", "psi"] < limits["psi"]


def test_another_laboratorys_smears_raise_an_alarm_within_one_window(reader: Reader, fitted: Reference) -> None:
    """Fields of many cells under another stain and camera: a coarse difference, which it must not miss."""
    if not BCCD.is_dir():
        pytest.skip("another laboratory's smears are not here")
    paths = sorted(BCCD.rglob("*.jpg"))[:50]
    pixels = np.stack([images.resize(images.decode(path.read_bytes()), SIZE) for path in paths])
    assert {"stain_hue", "saturation"} & alarms(reader(pixels), fitted)


def test_the_demos_own_model_file_does_the_same() -> None:
    """The real model and its own reference: quiet on the test split, loud on blur, stain and other smears."""
    if not DEMO.is_file() or not (prepared.PREPARED / "split.csv").is_file():
        pytest.skip("dvc repro has not run here")
    session = open_session(DEMO, 2)
    try:
        promise = contract.parse(session.get_modelmeta().custom_metadata_map)
    except contract.ContractError as error:
        pytest.skip(f"models/ is older than the code; dvc repro makes it anew ({error})")

    def answer(chosen: np.ndarray) -> Signals:
        answers = dict(zip(OBSERVED, run(session, chosen, OBSERVED), strict=True))
        return drift_reference.signals(chosen, answers)

    pixels, test = prepared.read("test")
    held_out = np.asarray(pixels[test.index])
    for rows in windows(test["group"].tolist(), 100, 20):
        assert alarms(answer(held_out[rows]), promise.reference) == set()
    rows = next(windows(test["group"].tolist(), 100, 1))
    for change, signal in ((blurred, "sharpness"), (restained, "stain_hue")):
        assert signal in alarms(answer(np.stack([change(image) for image in held_out[rows]])), promise.reference)
    if BCCD.is_dir():
        size = promise.decode.size
        paths = sorted(BCCD.rglob("*.jpg"))[:50]
        others = np.stack([images.resize(images.decode(path.read_bytes()), size) for path in paths])
        assert alarms(answer(others), promise.reference)


def test_one_window_in_a_thousand_of_the_same_source_raises_an_alarm_whatever_the_number_of_signals(
    reader: Reader, validation: Smears
) -> None:
    rows = drift.encode_by(reader(validation.pixels), np.zeros((6, 21)), 4, 1.0)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(rows), 6)).cumsum(axis=1)  # six signals that hang together
    edges = np.quantile(noise, np.linspace(0, 1, 21), axis=0).T
    found = Signals(noise, validation.labels, rng.normal(size=(len(rows), 16)))
    rows = drift.encode_by(found, edges, 4, 5.0)
    limits = drift_reference.thresholds(rows, validation.patients, 4, 50, np.random.default_rng(1))
    count = 0
    members = [np.flatnonzero(np.array(validation.patients) == each) for each in dict.fromkeys(validation.patients)]
    for _ in range(3000):
        window_rows = np.concatenate([members[i] for i in rng.integers(len(members), size=5)])
        reference_rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        values = drift.statistics(rows[window_rows].mean(axis=0), rows[reference_rows].mean(axis=0), 4)
        count += any(value > limits[signal][test] for (signal, test), value in values.items())
    assert 0 <= count <= 10  # 3 expected; 14 tests at that level each would give about 30


def test_the_reference_survives_the_model_file_and_is_small(
    reader: Reader, fitted: Reference, validation: Smears
) -> None:
    text = fitted.model_dump_json()
    assert len(text) < 10_000
    back = Reference.model_validate_json(text)
    rows = drift.encode(reader(validation.pixels), back)
    assert rows.mean(axis=0) == pytest.approx(drift.mean(back), abs=1e-5)


def test_the_tests_are_what_they_are_called(fitted: Reference, reader: Reader, held_out: Smears) -> None:
    ours = reader(held_out.pixels[:100])
    theirs = reader(held_out.pixels[100:])
    edges = np.quantile(theirs.scalars, np.linspace(0, 1, 21), axis=0).T
    bandwidth = 0.5
    means = [drift.encode_by(each, edges, 4, bandwidth).mean(axis=0) for each in (ours, theirs)]
    found = drift.statistics(means[0], means[1], 4)
    for index, signal in enumerate(drift.SCALARS):
        exact = scipy.stats.ks_2samp(ours.scalars[:, index], theirs.scalars[:, index]).statistic
        assert exact - 0.06 <= found[signal, "ks"] <= exact + 1e-6
    p, q = (np.bincount(each.classes, minlength=4) / len(each.classes) for each in (ours, theirs))
    assert (p > drift.FLOOR).all()
    assert (q > drift.FLOOR).all()
    assert found["class", "psi"] == pytest.approx(float(((p - q) * np.log(p / q)).sum()), abs=1e-5)
    units = [each.embedding / np.linalg.norm(each.embedding, axis=1, keepdims=True) for each in (ours, theirs)]
    gamma = 1 / (2 * bandwidth**2)
    xx, yy, xy = (rbf_kernel(units[i], units[j], gamma).mean() for i, j in ((0, 0), (1, 1), (0, 1)))
    assert found["embedding", "mmd"] == pytest.approx(np.sqrt(xx + yy - 2 * xy), rel=0.35)


def test_the_random_frequencies_are_the_same_on_every_machine() -> None:
    signs = drift.random_signs(2048)
    assert set(np.unique(signs)) == {-1, 1}
    assert hashlib.sha256(signs.astype(np.int8).tobytes()).hexdigest()[:16] == "fea9f3aab2396e49"


@pytest.mark.parametrize(
    ("density", "hue"),
    [((0.14, 0.72, 0.58), 166), ((0.78, 0.60, 0.24), 41)],
    ids=["eosin", "azure"],
)
def test_stain_hue_is_that_of_the_stain_however_much_of_it_there_is(
    density: tuple[float, float, float], hue: float
) -> None:
    for amount in (0.8, 1.6):
        pixels = np.full((40, 40, 3), 250, np.uint8)  # an empty slide …
        pixels[10:20, 10:20] = 256 * np.exp(-amount * np.array(density)) - 1  # … with a stained spot
        assert drift.looks(pixels)[3] == pytest.approx(hue, abs=2)


def test_saturation_is_nought_on_grey_and_one_on_a_pure_colour() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:] = 90
    assert drift.looks(pixels)[1] == 0
    pixels[:] = (200, 0, 0)
    assert drift.looks(pixels)[1] == pytest.approx(1)


# In the server.


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tiny_model.write(tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def feed(watched: drift_window.Window, path: Path, count: int, seed: int = 0) -> None:
    """`count` answers to images of one colour each."""
    model = load(Located(path, "1", None), "fp32", 1)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pixels = rng.integers(0, 256, 3).astype(np.uint8) + np.zeros((32, 32, 3), np.uint8)
        outputs = {name: value[0] for name, value in zip(OBSERVED, model.run(pixels[None], OBSERVED), strict=True)}
        image = Decoded(pixels, images.Header("PNG", 32, 32, "RGB"), "0" * 64, float(pixels.mean()), 0.0, 0.0)
        watched.add(model, image, Scores(outputs, 0.0, 0.0))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"leukdetect_{name}", labels)


def test_below_the_smallest_window_nothing_is_said(tiny: Path) -> None:
    metrics = Metrics()
    watched = drift_window.Window(metrics)
    feed(watched, tiny, 49)
    watched.compare()
    assert value(metrics, "drift_window_images") == 49
    assert value(metrics, "drift_alarm", signal="sharpness") == 0
    feed(watched, tiny, 1)
    watched.compare()
    assert value(metrics, "drift_window_images") == 50
    assert value(metrics, "drift_alarm", signal="sharpness") == 1  # all of them are blank
    assert value(metrics, "drift_statistic", signal="sharpness", test="ks") == pytest.approx(0.95)
    assert value(metrics, "drift_threshold", signal="sharpness", test="ks") == 0.7


def test_a_file_that_is_older_than_a_test_is_not_held_to_it(tiny: Path) -> None:
    written = tiny_model.write(tiny)
    windows = [
        each.model_copy(update={"thresholds": each.thresholds | {"class": {"psi": 3.0}}})
        for each in written.reference.windows
    ]
    tiny_model.write(tiny, reference=written.reference.model_copy(update={"windows": windows}), bias=1000.0)
    metrics = Metrics()
    watched = drift_window.Window(metrics)
    feed(watched, tiny, 50)
    watched.compare()
    assert (value(metrics, "drift_statistic", signal="class", test="psi") or 0) > 3.0
    assert value(metrics, "drift_statistic", signal="class", test="excess") == 0


def test_another_model_begins_with_an_empty_window(tiny: Path) -> None:
    metrics = Metrics()
    watched = drift_window.Window(metrics)
    feed(watched, tiny, 60)
    watched.compare()
    assert value(metrics, "drift_alarm", signal="sharpness") == 1
    tiny_model.write(tiny.with_name("other.onnx"), bias=9.0)
    feed(watched, tiny.with_name("other.onnx"), 10)
    watched.compare()
    assert value(metrics, "drift_window_images") == 10
    assert value(metrics, "drift_alarm", signal="sharpness") == 0


def test_the_window_holds_no_more_than_its_size(tiny: Path) -> None:
    watched = drift_window.Window(Metrics())
    for _ in range(3):
        feed(watched, tiny, 150)
        watched.compare()
    assert len(watched._rows) == 200
    assert not watched._arrived


def test_predictions_feed_the_window_and_metrics_tell(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_window, "SECONDS", 0.05)
    settings = Settings(feedback_db=tiny.with_name("feedback.db"))
    app = create_app(settings, Models(load(Located(tiny, "7", "champion"), "fp32", 2)))
    with serve(app) as client:
        send(client, 50)
        deadline = time.monotonic() + 20
        while 'leukdetect_drift_alarm{signal="stain_hue"} 1.0' not in (text := client.get("/metrics").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        assert "leukdetect_drift_window_images 50.0" in text
        client.post("/explain", content=tiny_model.jpeg((200, 60, 60)))
        time.sleep(0.2)
        assert "leukdetect_drift_window_images 50.0" in client.get("/metrics").text


def send(client: httpx.Client, count: int) -> None:
    for _ in range(count):
        assert client.post("/predict", content=tiny_model.jpeg((200, 60, 60))).status_code == 200
