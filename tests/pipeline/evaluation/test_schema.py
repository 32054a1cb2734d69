"""The schema of reports/metrics.json, the model card for machines (tests/pipeline holds a run's against it)."""

import json

from pipeline.evaluation import schema

REGENERATE = (
    'python -c "import json; from pipeline.evaluation import schema as m; m.SCHEMA_FILE.write_text('
    "json.dumps(m.Report.model_json_schema(), indent=2, ensure_ascii=False) + '\\n')\""
)


def test_the_published_schema_is_that_of_the_report() -> None:
    assert json.loads(schema.SCHEMA_FILE.read_text()) == schema.Report.model_json_schema(), (
        f"pipeline/evaluation/metrics.schema.json is out of date; make it anew with\n{REGENERATE}"
    )
