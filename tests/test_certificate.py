"""The JSON form of a certificate: it survives the way there and back, and an edited one does not load."""

import json

import numpy as np
import pytest

from madewithml import certify, errors


@pytest.fixture(scope="module")
def rows():
    """Logits and labels of 500 rows, about 4 % wrong."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    points = rng.normal(size=(500, 3))
    points[np.arange(500), labels] += 2.8
    return 2.8 * points, labels


@pytest.fixture(scope="module")
def certification(rows):
    return certify.certify(*rows)


@pytest.mark.parametrize("max_risk", [0.05, 0.001])
def test_a_certification_survives_the_way_through_json(rows, max_risk):
    found = certify.certify(*rows, max_risk=max_risk, per_class=True, joint=True)

    assert found == certify.Certification.from_dict(json.loads(json.dumps(found.to_dict())))


def test_it_has_the_keys_that_are_promised(certification):
    keys = "status max_risk confidence_level threshold temperature num_rows num_accepted num_errors "
    keys += "risk_upper_bound coverage"

    values = certification.to_dict()

    assert set(keys.split()) <= set(values)
    assert [set(keys.split())] == [set(level) for level in values["levels"] if level["status"] == "certified"][:1]


def test_a_refusal_also_says_what_is_missing(rows):
    values = certify.certify(*rows, max_risk=0.001).to_dict()

    assert {"needed_rows", "expected_coverage", "best_max_risk", "reason"} <= set(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"num_errors": 0}, "cannot be used: risk_upper_bound is .*, but its counts give"),
        ({"risk_upper_bound": 0.001}, "risk_upper_bound is 0.001, but its counts give"),
        ({"coverage": 0.999}, "coverage is 0.999, but its counts give"),
        ({"max_risk": 0.001}, "it is certified, but its bound .* is above its max_risk"),
        ({"status": "approved"}, "status is 'approved'; expected 'certified' or 'refused'"),
        ({"status": "refused"}, "it is refused, but has threshold"),
        ({"threshold": None}, "it is certified with threshold None; expected a number from 0 to 1"),
        ({"threshold": 1.5}, "it is certified with threshold 1.5; expected a number from 0 to 1"),
        ({"temperature": 0.0}, "a finite temperature above 0"),
        ({"num_errors": 500}, "expected num_errors <= num_accepted <= num_rows"),
        ({"max_risk": "5 %"}, "max_risk of a certificate is '5 %'; expected float"),
        ({"num_rows": True}, "num_rows of a certificate is True; expected int"),
        ({"temprature": 1.0}, "key 'temprature' is unknown in a certificate; expected status, max_risk"),
    ],
)
def test_an_edited_certificate_is_not_loaded(certification, edit, message):
    with pytest.raises(errors.InputError, match=message):
        certify.Certificate.from_dict({**certification.certificate.to_dict(), **edit})


def test_a_missing_key_is_named(certification):
    values = certification.certificate.to_dict()
    del values["num_errors"]

    with pytest.raises(errors.InputError, match="key 'num_errors' is missing in a certificate; expected status"):
        certify.Certificate.from_dict(values)


def test_something_that_is_no_object_is_named():
    with pytest.raises(errors.InputError, match="a certificate is list; expected an object"):
        certify.Certificate.from_dict([])


def test_a_certificate_that_is_not_one_of_its_levels_is_not_loaded(certification):
    values = certification.to_dict()
    values["levels"] = values["levels"][:1]

    with pytest.raises(errors.InputError, match=r"max_risk 0\.05 is not one of its levels: it was edited"):
        certify.Certification.from_dict(values)
