"""Text is made without a plotting library."""

import subprocess
import sys

from tests.project import ROOT

IMPORT = """
import sys
from pipeline.evaluation import out_of_distribution, report
from pipeline.reporting import data_docs, datasheet, html_page, model_card, pull_request, tables
print(*(name for name in ("matplotlib", "tensorflow") if name in sys.modules))
"""


def test_measuring_and_writing_load_no_matplotlib() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("", "")
