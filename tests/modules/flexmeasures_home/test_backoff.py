"""Pauses between tries grow up to a maximum, and begin again after a success."""

from flexmeasures_home.backoff import Backoff


def test_pauses_double_up_to_the_maximum_and_begin_again():
    backoff, pauses = Backoff(10, 60), []
    for _ in range(5):
        pauses.append(backoff.seconds)
        backoff.grow()
    assert pauses == [10, 20, 40, 60, 60]
    backoff.reset()
    assert backoff.seconds == 10
