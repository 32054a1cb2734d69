"""What `dvc plots` draws of this project, in a browser that reaches nothing else."""

import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.browser.chromium import browser
from tests.project import ROOT

WHO = ("-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.mark.slow
def test_plots_of_two_commits_are_drawn_side_by_side_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    Path("dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))

    def draw(grey: int) -> None:
        for name in plots:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (grey, 50), grey).save(name)

    draw(100)
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", *WHO, "commit", "-qm", "a"],
    ):
        subprocess.run(command, check=True)
    draw(200)
    subprocess.run(["dvc", "plots", "diff", "HEAD"], check=True, capture_output=True)
    with browser() as page:
        page.execute_cdp_cmd("Network.enable", {})
        page.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        page.get(f"file://{tmp_path}/dvc_plots/index.html")
        widths = page.execute_script("return [...document.images].map(image => image.naturalWidth)")
        outside = page.execute_script(
            "return performance.getEntries().map(e => e.name).filter(n => n.startsWith('http'))"
        )
    assert sorted(widths) == [100] * len(plots) + [200] * len(plots)
    assert outside == []


def test_plots_are_figures_that_every_evaluation_draws() -> None:
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    drawn = (ROOT / "pipeline/reporting/figures/draw.py").read_text()
    assert plots
    for name in plots:
        assert f'"{Path(name).stem}":' in drawn
