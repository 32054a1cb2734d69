"""An HTML page on drift, with plots, in one file that needs nothing else.

Reads:  a folder of images and a model file; or a running server's /status.json and /model
Writes: the page (nothing of an image but its numbers is in it)
Run:    python -m monitoring.report --images FOLDER --model models/leukdetect.onnx --out report.html
        python -m monitoring.report --server http://localhost:8000 --out report.html
Exit:   0, or 3 where there is an alarm, so that a script can tell
"""

import argparse
import io
import json
import re
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from leukdetect import apart, contract, drift, images
from leukdetect.contract import Reference
from leukdetect.drift import Comparison
from leukdetect.page import render
from leukdetect.runtime import cpus, open_session, run
from monitoring import whole

PAGE = Path(__file__).with_name("report.html.jinja")
ALARM = 3  # exit code
DAY = 86_400  # seconds; the times of files that were copied together differ by less, and say nothing of the images
REFERENCE, WINDOW, BAD = "#7f8ca3", "#2f5597", "#9b1c2e"
NAMES = {signal: signal.replace("_", " ").capitalize() for signal in drift.MEANING} | {"class": "Predicted class"}
UNITS = {
    "confidence": "highest probability", "unlikeness": "1 is the referral threshold", "brightness": "mean luma, 0–255",
    "saturation": "mean, 0–1", "sharpness": "variance of the Laplacian", "stain_hue": "degrees",
}  # fmt: skip


class ReportError(Exception):
    """There is nothing to report on; the message says why."""


@dataclass(frozen=True)
class Findings:
    """What the page shows."""

    source: str
    promise: dict[str, Any]  # the contract as JSON, perhaps without its golden images: a server tells all but those
    windows: dict[str, Comparison]  # by name, in order of time
    unreadable: int = 0
    order: str = "in the order of the answers"
    whole: tuple[str, ...] = ()  # what all images show together

    @property
    def reference(self) -> Reference:
        """What the windows were compared with."""
        return Reference.model_validate(self.promise["reference"])

    @property
    def last(self) -> Comparison:
        """The latest window."""
        return list(self.windows.values())[-1]

    def alarms(self) -> list[str]:
        """The signals that raise an alarm in any window."""
        return [signal for signal in drift.MEANING if any(window.alarm(signal) for window in self.windows.values())]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="a folder")
    source.add_argument("--server", help="a running server's address")
    parser.add_argument("--model", type=Path, help="the model file, with --images")
    parser.add_argument("--patient", help="a pattern in an image's path, whose images stay together, with --images")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    options = parser.parse_args()
    if (options.images is None) != (options.model is None):
        parser.error("--images and --model go together")
    try:
        if options.images:
            found = of_folder(options.images, options.model, options.patient)
        else:
            found = of_server(options.server)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.write_text(page(found))
    alarms = found.alarms()
    verdict = f"drift in {', '.join(alarms)}" if alarms else "no drift in a window" if found.whole else "no drift"
    print(f"{options.out}: {verdict}", *found.whole, sep="\n")
    return ALARM if alarms or found.whole else 0


def of_folder(folder: Path, model: Path, patient: str | None = None) -> Findings:
    """Scores a folder's images as the server would, and compares windows of them that together hold every image.

    Raises ReportError: the model file is none of ours, or there are too few images.
    """
    paths, order = in_order([path for path in folder.rglob("*") if path.is_file()], patient)
    session = open_session(model, cpus())
    try:
        promise = contract.parse(contract.metadata_of(session))
    except contract.ContractError as error:
        raise ReportError(f"{model}: {error}") from error
    reference = promise.reference
    rows: list[np.ndarray] = []
    predicted, sides, unreadable = [], [], 0
    whose: set[str] = set()  # as --patient finds them
    for path in paths:
        try:
            data = path.read_bytes()
            pixels = apart.sized(data, promise.decode.size, promise.decode.scaled)
        except images.ImageError:
            unreadable += 1
            continue
        answers = dict(zip(contract.OBSERVED, run(session, pixels[None], contract.OBSERVED), strict=True))
        rows.append(drift.encode(drift.signals([drift.looks(pixels)], **answers), reference)[0])
        predicted.append(int(answers["probabilities"].argmax()))
        header = images.header(data)
        sides.append((header.width * header.height) ** 0.5)
        if patient and (mine := re.search(patient, path.as_posix())):
            whose.add(mine[0])
    full = [window.images for window in reference.windows if window.images <= len(rows)]
    if not full:
        needed = reference.windows[0].images
        raise ReportError(f"{folder} has {len(rows)} images that can be read; a comparison needs {needed}")
    windows = {}
    for start in [*range(0, len(rows) - full[-1], full[-1]), len(rows) - full[-1]]:  # the last two may overlap
        end = start + full[-1]
        if found := drift.compare(rows[start:end], reference):
            windows[f"{start + 1}–{end}"] = found
    together = (
        whole.mix(np.array(predicted), len(whose), reference, [each.label for each in promise.classes]),
        whole.sizes(np.array(sides), reference),
    )
    source, said = f"{len(rows)} images of a folder", tuple(filter(None, together))
    return Findings(source, promise.model_dump(mode="json"), windows, unreadable, order, said)


def in_order(paths: Sequence[Path], patient: str | None) -> tuple[list[Path], str]:
    """Files in the order of their times; in a random one where these tell nothing; and which it is, in words.

    Never by name: files sorted by class would make windows of one class each, which drift by construction. Those of
    which a pattern finds the same text in the path, such as a patient's, stay together.

    Raises ReportError: the pattern is no regular expression, or finds nothing in a path.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        try:
            found = re.search(patient, path.as_posix()) if patient else None
        except re.error as error:
            raise ReportError(f"--patient: {patient!r} is no regular expression ({error})") from error
        if patient and not found:
            raise ReportError(f"--patient: {patient!r} finds nothing in {path}")
        groups.setdefault(found[0] if found else str(path), []).append(path)
    since = {name: min(path.stat().st_mtime for path in members) for name, members in groups.items()}
    if dated := bool(since) and max(since.values()) - min(since.values()) >= DAY:
        names = sorted(groups, key=since.__getitem__)
    else:
        names = [list(groups)[i] for i in np.random.default_rng(0).permutation(len(groups))]
    order = "in the order of the files' times" if dated else "in a random order, since the files' times tell none"
    return [path for name in names for path in groups[name]], order + (", patient by patient" if patient else "")


def of_server(url: str) -> Findings:
    """What a server has found in its last answers.

    Raises ReportError: it does not answer, or has not had enough images yet.
    """
    status, model = _get(f"{url.rstrip('/')}/status.json"), _get(f"{url.rstrip('/')}/model")
    found = status["drift"]
    if not found["signals"]:
        raise ReportError(f"the server has answered {found['images']} images; a comparison needs {found['needed']}")
    tests = {
        each["signal"]: {test["test"]: (test["statistic"], test["threshold"]) for test in each["tests"]}
        for each in found["signals"]
    }
    shares = {each["signal"]: np.array(each["window"]) for each in found["signals"] if each["window"]}
    last = Comparison(found["images"], tests, shares)
    return Findings(f"The server at {url}", model["contract"], {f"last {last.images} answers": last})


def page(found: Findings) -> str:
    """The page, as HTML."""
    last, count, alarms = found.last, len(found.windows), [NAMES[signal].lower() for signal in found.alarms()]
    drifted = sum(bool(window.alarms()) for window in found.windows.values())
    said = f"Drift in {drifted} of the" if alarms else "No drift in the"
    return render(
        PAGE,
        found=found,
        verdict=f"{said} windows of {last.images} images ({count} in all){': ' if alarms else ''}{', '.join(alarms)}.",
        meanings=drift.MEANING,
        names=NAMES,
        plots={name: _svg(_spread(name, found)) for name in NAMES if name in last.shares and name != "embedding"},
        course=_svg(_course(found.windows)) if count > 1 else "",
    )


def _spread(signal: str, found: Findings) -> Figure:
    """The window's shares beside the reference's: of classes, or between the deciles of the validation images."""
    figure, axes = _figure(2.5)
    reference, ours = found.reference, found.last.shares[signal]
    if signal == "class":
        theirs, width = np.array(reference.class_shares), 0.4
        axes.set_xticks(range(len(ours)), [each["label"] for each in found.promise["classes"]])
    else:
        scalar, width = reference.scalars[signal], 0.45
        ours, theirs = _deciles(ours), _deciles(scalar.shares)
        deciles = [f"{value:.4g}" for value in scalar.quantiles[::2]]
        axes.set_xticks(np.arange(len(deciles)) + 0.5, deciles)  # where one bar's pair ends and the next begins
        axes.set_xlabel(f"{UNITS[signal]}; the outermost bars are lower or higher than any validation image")
    places = np.arange(len(ours))
    axes.bar(places - width / 2, theirs, width, color=REFERENCE, label="validation")
    axes.bar(places + width / 2, ours, width, color=BAD if found.last.alarm(signal) else WINDOW, label="window")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(frameon=False, ncols=2, loc="outside upper left")
    return figure


def _deciles(shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Of 22 cells: below, ten tenths, above."""
    return np.r_[shares[0], np.reshape(shares[1:-1], (-1, 2)).sum(axis=1), shares[-1]]


def _course(windows: Mapping[str, Comparison]) -> Figure:
    """Each signal's largest statistic ÷ threshold, window by window."""
    figure, axes = _figure(3.4)
    for index, signal in enumerate(drift.MEANING):
        ratios = [max(s / t if t else 0.0 for s, t in window.tests[signal].values()) for window in windows.values()]
        axes.plot(ratios, marker="o", ms=4, color=mpl.color_sequences["tab10"][index], label=NAMES[signal])
    axes.axhline(1, color=BAD, lw=1.5)
    axes.annotate("threshold", (0, 1), xytext=(2, 3), textcoords="offset points", color=BAD)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(windows)), list(windows), rotation=30, ha="right")
    axes.set_xlabel("images")
    axes.set_ylabel("statistic ÷ threshold")
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Inline, with text as text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "leukdetect"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]


def _get(url: str) -> dict:
    if not url.startswith(("http://", "https://")):
        raise ReportError(f"{url} is no address of a server")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  (the scheme was just checked)
            answer: dict = json.load(response)
    except (OSError, ValueError) as error:
        raise ReportError(f"{url}: {error}") from error
    return answer


if __name__ == "__main__":
    sys.exit(main())
