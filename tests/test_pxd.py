"""A .pxd says of what a compiled class is made: each of its fields is assigned in the .py, and nothing else is.

Uncompiled, Python takes any attribute; compiled, one that the .pxd does not name is an AttributeError, but only where
the line runs.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "virtex"
TYPED = sorted(PACKAGE.rglob("[!_]*.pxd"))

_CLASS = re.compile(r"^cdef class (\w+)(?:\((\w+)\))?:")
_FIELD = re.compile(r"^    cdef (?:public |readonly )?(?!inline)[\w.]+(?: long)?(?: int)? ((?:\w+, )*\w+)$")


@cache
def declared() -> dict[str, tuple[str | None, frozenset[str]]]:
    """Each class of a .pxd: its base, and its own fields."""
    found: dict[str, tuple[str | None, frozenset[str]]] = {}
    for path in TYPED:
        name, base, fields = "", None, set[str]()
        for line in [*path.read_text().splitlines(), "cdef class end:"]:
            if begins := _CLASS.match(line):
                if name:
                    found[name] = base, frozenset(fields)
                name, base, fields = begins[1], begins[2], set()
            elif field := _FIELD.match(line):
                fields.update(field[1].split(", "))
    return found


def fields_of(name: str | None) -> frozenset[str]:
    if name is None or name not in declared():
        return frozenset()
    base, own = declared()[name]
    return own | fields_of(base)


def assigned(tree: ast.AST) -> set[str]:
    """The attributes that any object is given here."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def assigned_by_heirs(name: str) -> set[str]:
    """Those that objects are given where classes that are derived from this one stand."""
    heirs = [heir for heir, (base, _) in declared().items() if base == name]
    classes = {path: re.findall(r"^cdef class (\w+)", path.read_text(), re.MULTILINE) for path in TYPED}
    files = [path.with_suffix(".py") for path, names in classes.items() if set(names) & set(heirs)]
    return set().union(*[assigned(ast.parse(path.read_text())) for path in files])


def assigned_to_self(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("pxd", TYPED, ids=lambda path: path.stem)
def test_what_a_pxd_declares_is_what_the_module_assigns(pxd: Path) -> None:
    tree = ast.parse(pxd.with_suffix(".py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    everywhere = assigned(tree)
    here = re.findall(r"^cdef class (\w+)", pxd.read_text(), re.MULTILINE)
    assert set(here) <= set(classes)
    for name in here:
        setters = {
            node.name
            for node in ast.walk(classes[name])
            if isinstance(node, ast.FunctionDef)
            and any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
        }
        assert assigned_to_self(classes[name]) - setters <= fields_of(name), f"{name}: not in {pxd.name}"
        assert declared()[name][1] <= everywhere | assigned_by_heirs(name), (
            f"{name}: declared in {pxd.name}, assigned nowhere"
        )
