from dataclasses import FrozenInstanceError, asdict

import pytest

from virtex import Limits


@pytest.mark.parametrize("name", asdict(Limits()))
@pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), float("inf"), 1 << 62], ids=repr)
def test_a_limit_that_is_not_above_zero_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"Limits\({name}=.*expected a number above 0"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", [name for name, value in asdict(Limits()).items() if isinstance(value, int)])
def test_what_is_counted_is_whole_however_it_is_written(name):
    limit = getattr(Limits(**{name: 1e6}), name)
    assert type(limit) is int and limit == 1_000_000
    with pytest.raises(ValueError, match=rf"Limits\({name}=1.5\): expected a whole number"):
        Limits(**{name: 1.5})


def test_limits_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Limits().body = 1
