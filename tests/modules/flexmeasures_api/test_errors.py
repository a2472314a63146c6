"""An error has a text, and how long the server asks to wait."""

import pytest

import flexmeasures_api.errors as errors


def test_the_text_of_an_error_is_its_sentence_alone():
    assert str(errors.RateLimited("wait", 90)) == "wait"


@pytest.mark.parametrize(("asked", "waited"), [(None, None), (0, 0), (90, 90), (86_400, 900), (10**400, 900)])
def test_a_server_is_left_alone_for_a_quarter_of_an_hour_at_most(asked, waited):
    assert errors.Unreachable("busy", asked).retry_after == waited
