"""What is made of the seconds that a carried round was measured with."""

import pytest

from securefed.engines.in_process import Carried
from securefed.engines.timing import EncryptionSeconds


def seconds_of(last: dict[str, float]) -> EncryptionSeconds:
    carried = Carried(
        seconds={
            "advertise": dict.fromkeys(("ann", "bob", "cyd", "decryptor"), 100.0),
            "share": {"decryptor": 50.0} if "decryptor" in last else {"ann": 50.0},
            "masked_input": {"ann": 3.0, "bob": 7.0},
            "unmask": last,
        },
        taking={"advertise": 10.0, "masked_input": 0.5},
    )
    # One client charged and then sent nothing that was taken.
    return EncryptionSeconds.of(carried, {"ann": 1.0, "bob": 4.0, "cyd": 2.0})


def test_making_a_contribution_is_left_out_and_the_server_counts_as_a_whole():
    found = seconds_of({"decryptor": 0.25})
    assert found.encrypting == pytest.approx(2.5)
    assert found.adding == 0.5


def test_opening_is_the_decryptors_last_answer_or_the_mean_of_those_who_hold_the_key():
    assert seconds_of({"decryptor": 0.25}).opening == 0.25
    assert seconds_of({"ann": 2.0, "decryptor": 0.25}).opening == 0.25  # with masks: both answer


def test_where_the_cohort_holds_the_key_an_opening_is_the_mean_over_those_who_opened():
    carried = Carried(
        seconds={"masked_input": {"ann": 1.0}, "unmask": {"ann": 2.0, "bob": 4.0}},
        taking={"masked_input": 0.0},
    )
    assert EncryptionSeconds.of(carried, {"ann": 0.5}).opening == 3.0
