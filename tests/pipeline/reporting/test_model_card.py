"""What the model card says where numbers are at an end."""

import re

from pipeline.reporting import model_card_trust
from tests import measured


def test_where_nothing_is_reported_no_error_rate_of_it_is_given() -> None:
    card = model_card_trust.abstention(measured.report({"abstention.fp32.referred": 1.0}))
    (line,) = re.findall(r"\| Wrong, of those reported \|.*", card)
    assert line == "| Wrong, of those reported | none is reported | 0.900 [0.800, 0.950] |"


def test_the_card_does_not_round_a_rare_disease_to_none() -> None:
    found = measured.report()
    rare = found.operating_point.model_copy(update={"prevalence": 0.002})
    card = model_card_trust.calibration(found.model_copy(update={"operating_point": rare}))
    assert "where 0.2% of images are malignant" in card
