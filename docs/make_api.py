"""Writes what the pages say of the code from its docstrings: make api.

    docs/api.md             every public name: signature, parameters, errors
    docs/architecture.md    the table of files, between its markers

Rules: reads the sources and imports none of them. So a page is the same whatever is compiled, and in every Python.
tests/test_docs.py makes both pages again and compares.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WIDTH = 110

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

# What the signatures of the public names mention and users meet, with the public name that leads there.
MET = {
    "Worker": ("RequestHandler", "What `setup()` gets. For a test: `from virtex.handler import Worker`."),
    "Listener": ("serve", "What `serve()` gives."),
    "BatchReport": ("Observer", "What `Observer.batch_done()` gets."),
    "Head": ("http_server", "What the function given as `authorize=` gets."),
    "CodecInfo": ("codec_info", "What `codec_info()` gives."),
}

# Made by others, and called by others: neither how they are made nor their methods are for users.
OTHERS_CALL = ("VirtexWorker", "HttpProtocol")
MADE_BY_OTHERS = ("Server", "VirtexWorker", "Listener", "BatchReport", "Head", "CodecInfo")

SPELLED = {"_Buffer": "bytes | bytearray | memoryview", "tls.": "ssl."}  # names that only the source explains

MODULES = ("virtex", "virtex.serial", "virtex.ray")  # a part of the page for each

OPENING = """# Every public name

This page is made from the docstrings by `make api`. Import the names of a part from the module that heads it. A
parameter without a default has to be given. What stands behind `*` is given by name.
[limits.md](limits.md) has a reason for every limit, [wire.md](wire.md) has every status."""


# -- names -> their definitions in the sources


@cache
def tree_of(module: str) -> ast.Module:
    """The parsed source of a module; of a compiled one its stub."""
    path = ROOT.joinpath(*module.split("."))
    for source in (path.with_suffix(".py"), path / "__init__.py", path.with_suffix(".pyi")):
        if source.exists():
            return ast.parse(source.read_text())
    raise LookupError(f"{module} has no source")


def names_in(module: str) -> list[str]:
    """A module's __all__."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise LookupError(f"{module} has no __all__")


def find(module: str, name: str) -> tuple[str, Definition]:
    """Where a name is defined, and its definition: imports are followed, those for the type checker too."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, Definition) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return find(absolute(module, node), original)
    raise LookupError(f"{module} has no {name}")


def absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts if ROOT.joinpath(*parts).is_dir() else parts[:-1]
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *filter(None, [node.module])])


def methods_of(node: ast.ClassDef) -> Iterator[Function]:
    """The methods that the class itself has for others to call, in the order of its source."""
    for member in node.body:
        if isinstance(member, Function) and not is_setter(member):
            yield from [member] if member.name == "__call__" or not member.name.startswith("_") else []


def is_setter(node: Function) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list)


def has_decorator(node: Function, name: str) -> bool:
    return any(ast.unparse(one) == name for one in node.decorator_list)


def parameters_of(node: Definition) -> list[str]:
    """What may be given to a function, or to a class to make one."""
    if isinstance(node, ast.ClassDef):
        made = constructor_of(node)
        return parameters_of(made) if made else [name for name, _ in fields_of(node)]
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def constructor_of(node: ast.ClassDef) -> Function | None:
    return next((one for one in node.body if isinstance(one, Function) and one.name == "__init__"), None)


def fields_of(node: ast.ClassDef) -> list[tuple[str, str]]:
    """The annotated attributes of a class, as they stand in its source."""
    return [(ast.unparse(one.target), ast.unparse(one)) for one in node.body if isinstance(one, ast.AnnAssign)]


# -- definitions -> text


def signature(node: Definition, name: str) -> str:
    """How it is called, in one line or one line for each parameter."""
    if isinstance(node, ast.ClassDef):
        made = constructor_of(node)
        if made is not None:
            return called(name, arguments(made), "")
        is_dataclass = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
        return called(name, ["*", *(text for _, text in fields_of(node))], "") if is_dataclass else ""
    if has_decorator(node, "property"):
        return f"{name}: {ast.unparse(node.returns) if node.returns else 'Any'}"
    before = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    after = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return called(before + name, arguments(node), after)


def arguments(node: Function) -> list[str]:
    """The parameters as they stand in the source, without self and without those that begin with an underscore."""
    spec = node.args
    spec.args = [one for one in spec.args if one.arg not in ("self", "cls")]
    defaults: list[ast.expr | None] = [None] * (len(spec.args) - len(spec.defaults))
    texts = [argument(one, value) for one, value in zip(spec.args, [*defaults, *spec.defaults], strict=True)]
    if spec.vararg:
        texts.append("*" + argument(spec.vararg, None))
    elif spec.kwonlyargs:
        texts.append("*")
    texts += [argument(one, value) for one, value in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    return texts + (["**" + argument(spec.kwarg, None)] if spec.kwarg else [])


def argument(one: ast.arg, default: ast.expr | None) -> str:
    text = one.arg + (f": {ast.unparse(one.annotation)}" if one.annotation else "")
    for private, meant in SPELLED.items():
        text = text.replace(private, meant)
    if default is None:
        return text
    return text + (" = " if one.annotation else "=") + ast.unparse(default)


def called(name: str, texts: list[str], after: str) -> str:
    line = f"{name}({', '.join(texts)}){after}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(texts) + f",\n){after}"


def prose(doc: str, names: list[str]) -> str:
    """A docstring as Markdown: an item for each parameter that it explains, and for the errors that it names."""
    paragraphs = re.split(r"\n\s*\n", cleandoc(doc))
    pieces = [piece for text in paragraphs for piece in pieces_of(text, names)]
    gaps = [
        "\n" if piece.startswith("- ") and before.startswith("- ") else "\n\n" for before, piece in pairwise(pieces)
    ]
    return "".join(map(add, ["", *gaps], pieces))


def pieces_of(text: str, names: list[str]) -> list[str]:
    """A paragraph as plain text, items of a list, or a drawing."""
    if re.search(r"^    ", text, re.MULTILINE):
        return [f"```text\n{textwrap.dedent(text)}\n```"]
    words = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)"
    start = re.compile(rf"(?:^|(?<=[.;)] ))(?:({words}): |(Raises|Returns):? |(?=[A-Z]\w+: ))")
    line = " ".join(text.split())
    found = list(start.finditer(line))
    pieces = [escaped(line[: found[0].start()].strip())] if found else [escaped(line)]
    for match, end in zip(found, [*(one.start() for one in found[1:]), len(line)], strict=False):
        rest = escaped(line[match.end() : end].strip().rstrip(";"))
        name = f"`{match[1]}`: " if match[1] else f"**{match[2]}** " if match[2] else ""
        pieces.append(f"- {name}{rest}" if name else rest)
    return list(filter(None, pieces))


def escaped(text: str) -> str:
    """Plain text, of which Markdown is to take nothing but what stands in backquotes for markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def anchor(heading: str) -> str:
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entry(name: str, node: Definition, note: str = "") -> str:
    """A name with its signature, its docstring and, of a class, its methods."""
    lines = [f"{'####' if '.' in name else '###'} {name}", note]
    shown = "" if name in MADE_BY_OTHERS else signature(node, name)
    if shown:
        lines.append(f"```text\n{shown}\n```")
    names = parameters_of(node)
    if isinstance(node, ast.ClassDef):
        names += attributes_of(node)
        lines.append(bases_of(name, node))
    lines.append(prose(ast.get_docstring(node) or "", list(dict.fromkeys(names))))
    if isinstance(node, ast.ClassDef) and name not in OTHERS_CALL:
        lines += [entry(f"{name}.{one.name}", one) for one in methods_of(node) if ast.get_docstring(one)]
    return "\n\n".join(filter(None, lines))


def bases_of(name: str, node: ast.ClassDef) -> str:
    """The documented classes that a class inherits from; "" for none."""
    bases = [ast.unparse(one) for one in node.bases if name not in OTHERS_CALL]
    known = [f"[{base}](#{anchor(base)})" for base in bases if base in documented()]
    return f"A kind of {' and '.join(known)}." if known else ""


def attributes_of(node: ast.ClassDef) -> list[str]:
    """The public attributes that the class or its constructor sets."""
    found = [name for name, _ in fields_of(node)]
    for one in ast.walk(node):
        targets: list[Any] = one.targets if isinstance(one, ast.Assign) else []
        targets = [one.target] if isinstance(one, ast.AnnAssign) else targets
        found += [target.attr for target in targets if isinstance(target, ast.Attribute)]
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in found if not name.startswith("_")]


# -- the pages


@cache
def documented() -> dict[str, Definition]:
    """Every name of the page with its definition, in its order."""
    found = {name: find(module, name)[1] for module in MODULES for name in names_in(module)}
    errors = [node for node in tree_of("virtex.errors").body if isinstance(node, ast.ClassDef)]
    found |= {node.name: node for node in errors if node.name not in found}
    return found | {name: find(find("virtex", by)[0], name)[1] for name, (by, _) in MET.items()}


def api() -> str:
    """The text of docs/api.md."""
    names = documented()
    drawing = cleandoc(ast.get_docstring(tree_of("virtex.errors")) or "")
    errors = [name for name, node in names.items() if name.endswith("Error") and name not in names_in("virtex")]
    parts = {
        **{module: [entry(name, names[name]) for name in names_in(module)] for module in MODULES},
        "virtex.errors": [prose(drawing, []), *(entry(name, names[name]) for name in errors)],
        "What those names lead to": [entry(name, names[name], note) for name, (_, note) in MET.items()],
    }
    sections = (f"## {part}\n\n" + "\n\n".join(entries) for part, entries in parts.items())
    return "\n\n".join([OPENING, *sections]) + "\n"


def files() -> str:
    """A table of the package's files, each with the first sentence of its docstring."""
    lines = ["| file | what it is |", "|---|---|"]
    for path in sorted((ROOT / "virtex").rglob("*.py*"), key=lambda path: (len(path.parts) > 2, path)):
        if path.suffix in (".py", ".pyx") and "__pycache__" not in path.parts:
            sentence = opening(path)
            if sentence:
                lines.append(f"| `{path.relative_to(ROOT / 'virtex')}` | {sentence} |")
    return "\n".join(lines)


def opening(path: Path) -> str:
    """The first sentence of a file's docstring; "" where it has none."""
    match = re.match(r'\s*(?:#[^\n]*\n\s*)*"""(.*?)(?:\n\n|"""|:\n)', path.read_text(), re.DOTALL)
    text = " ".join(match[1].split()) if match else ""
    sentence = re.split(r"(?<=[.:]) (?=[A-Z])", text)[0]
    return escaped(re.sub(r":$", ".", sentence)).replace("|", r"\|")


def placed(text: str, table: str) -> str:
    """The text with `table` between <!-- files --> and <!-- end -->."""
    start, end = "<!-- files -->", "<!-- end -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def main() -> None:
    (DOCS / "api.md").write_text(api())
    architecture = DOCS / "architecture.md"
    architecture.write_text(placed(architecture.read_text(), files()))


if __name__ == "__main__":
    main()
