"""Which source files a module uses: itself and what it imports, followed to the end.

A finished step depends on exactly these files. Three things are left out. Modules of the standard library and of other
packages have versions of their own. Rooms that move bytes and print lines (`CARRIERS`) decide no number. A registry,
which is a module that holds nothing but one literal dict, names many modules of which a step uses few: the step adds
the ones it uses.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = ("hst", "pipeline")
"""Packages whose imports are followed, beside those of the modules asked for."""
CARRIERS = tuple(f"pipeline.{room}" for room in ("storage", "cluster", "console", "tracking"))
"""Rooms without influence on a result."""


def imported_names(source: str, *, at_run_time: bool = False) -> set[str]:
    """Every dotted name that a source imports, inside functions too: ``from ray import train`` gives ray.train.

    Args:
        source: Python code; its imports are absolute.
        at_run_time: leave out what stands below ``if TYPE_CHECKING``.
    """
    names: set[str] = set()
    for node in _nodes(ast.parse(source), at_run_time):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from hst.config import HSNConfig"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("__import__", "import_module", "importlib.import_module"):
                names.add(str(node.args[0].value))
    return names


@cache
def import_closure(modules: tuple[str, ...]) -> dict[str, Path]:
    """The modules that ``modules`` use, themselves included, with their files, sorted by name.

    Raises:
        FileNotFoundError: one of ``modules`` has no file.
    """
    found: dict[str, Path] = {}
    packages = {*OWN, *(module.partition(".")[0] for module in modules)}
    waiting = list(modules)
    for module in modules:
        _existing_file(module)
    while waiting:
        module = waiting.pop()
        file = file_of(module)
        if module in found or file is None or file.name == "__init__.py":
            continue
        source = file.read_text(encoding="utf-8")
        if is_registry(source):
            continue
        found[module] = file
        for name in imported_names(source, at_run_time=True):
            # `from a.b import c` imports the module a.b.c or a name out of a.b.
            waiting += [one for one in (name, name.rpartition(".")[0]) if _is_followed(one, packages)]
    return dict(sorted(found.items()))


@cache
def modules_sha256(modules: tuple[str, ...], alone: tuple[str, ...] = ()) -> str:
    """sha256 over the sources of ``modules`` with all that they use, and of the modules ``alone`` without it."""
    digest = hashlib.sha256()
    used = import_closure(modules) | {module: _existing_file(module) for module in alone}
    for module, file in sorted(used.items()):
        digest.update(f"{module} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def is_registry(source: str) -> bool:
    """Whether a module holds one literal dict of texts, and nothing else but its docstring."""
    body = ast.parse(source).body
    statements = [
        node
        for node in body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    ]
    if len(statements) != 1 or not isinstance(statements[0], ast.Assign | ast.AnnAssign):
        return False
    value = statements[0].value
    return isinstance(value, ast.Dict) and all(
        isinstance(one, ast.Constant) and isinstance(one.value, str) for one in value.values
    )


def file_of(module: str) -> Path | None:
    """A module's source file: below the repository's root if it is there, else wherever Python finds it."""
    path = ROOT / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    if module.partition(".")[0] in OWN:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def _existing_file(module: str) -> Path:
    file = file_of(module)
    if file is None:
        raise FileNotFoundError(f"module {module}: a step uses it, but it has no source file")
    return file


def _is_followed(module: str, packages: Collection[str]) -> bool:
    if any(module == carrier or module.startswith(f"{carrier}.") for carrier in CARRIERS):
        return False
    return module.partition(".")[0] in packages


def _nodes(tree: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    """Every node, or all but those below ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children = node.orelse
        waiting += children
