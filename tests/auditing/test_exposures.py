"""What attacks are tried on, in the words of threat models."""

from securefed.auditing.catalogue import CATALOGUE
from securefed.threats.views import EXPOSURES


def test_threat_models_know_every_exposure_that_attacks_are_tried_on_and_no_other():
    assert {name for each in CATALOGUE.values() for name in each.exposures} == set(EXPOSURES)
