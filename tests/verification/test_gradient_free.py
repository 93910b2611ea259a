import pytest

from pgcli.verification.gradient_free import checks


@pytest.mark.parametrize("check", [pytest.param(check, id=f"{check.algo}: {check.quantity}") for check in checks()])
def test_what_is_known_of_searching_without_a_gradient_holds(check):
    assert check.passed, check
