from dataclasses import FrozenInstanceError, asdict

import pytest

from virtex import Limits


@pytest.mark.parametrize("name", asdict(Limits()))
@pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), float("inf"), 1 << 62], ids=repr)
def test_a_limit_that_is_not_above_zero_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"Limits\({name}=.*expected a number above 0"):
        Limits(**{name: value})


def test_limits_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Limits().body = 1
