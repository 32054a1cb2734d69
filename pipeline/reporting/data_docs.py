"""Great Expectations' Data Docs as one page that needs no network and is the same for the same data.

The library's own site takes its styles, its icons and the script that fills its index from seven other hosts, so that
without the internet the index is blank; it also has the time in file names. The results below are rendered
by the library; only the page around them is ours.
"""

from html import escape
from pathlib import Path

import pandas as pd

from pipeline import stage
from pipeline.data.expectations import Finding

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --good: #1a7f4b; --bad: #c62f3b }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff7b84 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { margin-top: 2.5rem }
section { border: 1px solid var(--line); border-left: 5px solid var(--good); border-radius: 6px }
section { margin: 1rem 0; padding: .2rem 1rem .6rem }
section.failed { border-left-color: var(--bad) }
h3 { font-size: 1rem; margin: .5rem 0 } .passed > h3::before { content: "✔ "; color: var(--good) }
.failed > h3::before { content: "✘ "; color: var(--bad) }
h1 .passed { color: var(--good) } h1 .failed { color: var(--bad) }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0 }
thead th { font-weight: 600; border-bottom: 1px solid var(--line) }
td td, table.counts td { border-bottom: 1px solid var(--soft) }
table.counts { width: auto } td { overflow-wrap: anywhere } th { white-space: nowrap } p { margin: .3rem 0 }
/* The status column holds icons of a font that is not here; the heading says it instead. */
section .table > thead > tr > th:first-child, section .table > tbody > tr > td:first-child { display: none }
section .table > thead > tr > th:last-child, section .table > tbody > tr > td:last-child { width: 9rem }
section td .table tr > * { display: table-cell !important }
.badge { font-family: ui-monospace, monospace; background: var(--soft); border-radius: 4px; padding: 0 .3rem }
"""


def write(folder: Path, subject: str, classes: pd.DataFrame, findings: list[Finding]) -> None:
    """Writes `folder`/index.html.

    Args:
        subject: what was checked, in a few words.
        classes: the counts of each class, shown as they are.
        findings: in the order in which they are shown.
    """
    passed = sum(finding.success for finding in findings)
    verdict = "passed" if passed == len(findings) else "failed"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Validation of the images</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n<body>\n'
        f'<h1>Validation <span class="{verdict}">{verdict}</span></h1>\n'
        f"<p>{escape(subject)}; {passed} of {len(findings)} expectations met; by Great Expectations. "
        'Long lists are cut short here; <a href="../results.json">results.json</a> has all of them.</p>\n'
        f"{classes.to_html(index=False, border=0, classes='counts', na_rep='–')}\n"
        f"{''.join(_section(finding) for finding in findings)}\n</body></html>\n"
    )
    with stage.writing(folder) as temporary:
        temporary.mkdir()
        (temporary / "index.html").write_text(page, encoding="utf-8")


def _section(finding: Finding) -> str:
    match finding.observed:
        case [low, high]:
            observed = f"{low:g} to {high:g}"
        case dict(counts):
            observed = ", ".join(f"{value} {count}" for value, count in counts.items())
        case observed:
            observed = observed if observed is not None else "nothing"
    return (
        f'<section class="{"passed" if finding.success else "failed"}"><h3>{escape(finding.check.rule)}</h3>\n'
        f"<p>Observed: {escape(str(observed))}</p>\n{finding.html}</section>\n"
    )
