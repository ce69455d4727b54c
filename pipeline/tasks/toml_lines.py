"""Finds the line in which each table and key of a TOML text begins, because tomllib does not keep it."""

import re
import tomllib

_TOKEN = re.compile(
    r'''
    (?P<text> """(?:[^\\]|\\.)*?"""(?:"{0,2})   # a text over several lines may end with quotes of its own
            | \'\'\'.*?\'\'\'(?:'{0,2})
            | "(?:[^"\\\n]|\\.)*"
            | '[^'\n]*' )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<bare> [A-Za-z0-9_-]+ )
    | (?P<sign> [\[\]{}=] )
    | .
    ''',
    re.DOTALL | re.VERBOSE,
)
_DEPTH = {"[": 1, "{": 1, "]": -1, "}": -1}

Key = tuple[str, ...]
_Token = tuple[str, str, int]  # kind, text, line


def line_numbers(text: str) -> dict[Key, int]:
    """The line, from 1, of every table and key. Keys inside an inline table have no line of their own.

    Args:
        text: Valid TOML; for other texts the result is meaningless.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    for statement in _statements(text):
        is_header = statement[0][1] == "["
        key = _key(statement)
        if is_header:
            table = key
        path = key if is_header else table + key
        for length in range(1, len(path) + 1):  # [a.b] also creates a
            lines.setdefault(path[:length], statement[0][2])
    return lines


def line_of(lines: dict[Key, int], path: Key) -> int:
    """The line of a key, or of the nearest table around it that has one."""
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), 1)


def _statements(text: str) -> list[list[_Token]]:
    """The tokens of each header, and of each key with its value, which may span several lines."""
    statements: list[list[_Token]] = []
    current: list[_Token] = []
    line, depth = 1, 0
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match[0]
        if kind == "newline" and depth == 0 and current:
            statements.append(current)
            current = []
        elif kind in ("text", "bare", "sign"):
            current.append((kind, token, line))
            depth += _DEPTH.get(token, 0)
        line += token.count("\n")
    return [*statements, current] if current else statements


def _key(statement: list[_Token]) -> Key:
    """The names in a header, or those before the equals sign."""
    names = []
    for kind, token, _ in statement:
        if token == "=" and kind == "sign":
            break
        if kind in ("text", "bare"):
            names.append(token if kind == "bare" else tomllib.loads(f"name = {token}")["name"])
    return tuple(names)
