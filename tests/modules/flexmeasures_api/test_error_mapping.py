"""Failures are told by meaning."""

import pytest

import flexmeasures_api.error_mapping as error_mapping
import flexmeasures_api.errors as errors


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "Job a ended with status FAILED. Scheduling job failed with ValueError: Prices unknown for "
            "planning window. (sensor 9).\nServer traceback:\nFile x",
            "PricesMissing",
            "sensor 9",
        ),
        (
            "Job a ended with status FAILED. Scheduling job failed with InfeasibleProblemException: x.",
            "Infeasible",
            "power_capacity",
        ),
        (
            "Job a ended with status FAILED. Scheduling job failed with KeyError: 'y'.",
            "JobFailed",
            "KeyError",
        ),
    ],
)
def test_a_failed_job_is_told_by_meaning(text, kind, says):
    error = error_mapping.from_failed_job(text)
    assert type(error) is getattr(errors, kind)
    assert says in str(error)
    assert "traceback" not in str(error)


def test_a_nested_refusal_is_one_line_that_names_the_field():
    message = {
        "json": {"flex-model": {"0": {"soc-at-start": ["Not a valid quantity."]}}, "start": ["Missing."]}
    }
    assert (
        error_mapping.on_one_line(message)
        == "flex-model[0].soc-at-start: Not a valid quantity.; start: Missing."
    )
