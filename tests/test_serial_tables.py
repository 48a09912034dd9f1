"""What the tables of docs/serial.md say comes back, comes back; what they say is refused is refused, with a remedy."""

from __future__ import annotations

import json
import warnings

import pytest
from kit import needs
from kit.serial_tables import INSTALLED, LIBRARIES, PAGE, decode, encode, kit_of, placed, table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of its tensors experimental
CASES = [(library, name, value) for library in INSTALLED for name, value in kit_of(library).cases()]
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    REFUSED = [(library, name, value, text) for library in INSTALLED for name, value, text in kit_of(library).refused()]


@pytest.mark.parametrize(("library", "name", "value"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_it_comes_back_equal_through_json(library: str, name: str, value: object) -> None:
    text = json.loads(json.dumps(encode(library, value)))
    assert kit_of(library).same(value, decode(library, text))


@pytest.mark.parametrize(
    ("library", "name", "value", "said"), REFUSED, ids=[f"{case[0]}-{case[1]}" for case in REFUSED]
)
def test_it_is_refused_by_name(library: str, name: str, value: object, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        encode(library, value)
    assert said in str(caught.value)


@pytest.mark.parametrize("library", INSTALLED)
def test_the_page_has_the_table_of_what_was_tried(library: str) -> None:
    page = PAGE.read_text()
    assert placed(page, library, table(library)) == page, "PYTHONPATH=.:tests python -m kit.serial_tables"


def test_every_library_is_tried_but_those_with_an_environment_of_their_own() -> None:
    assert not needs.every or set(LIBRARIES) - set(INSTALLED) <= {"tf", "mx"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_has_its_table(library: str) -> None:
    assert f"<!-- serial: {library} -->" in PAGE.read_text()
