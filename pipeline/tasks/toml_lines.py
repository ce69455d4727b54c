"""In which line of a TOML text each table and key begins, which tomllib does not keep."""

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
    """The line, from 1, of every table and key; what stands inside an inline table is in the line of that table's key.

    Args:
        text: Valid TOML; of anything else the answer means nothing.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    for statement in _statements(text):
        is_header = statement[0][1] == "["
        key = _key(statement)
        if is_header:
            table = key
        path = key if is_header else table + key
        for length in range(1, len(path) + 1):  # [a.b] makes a, too
            lines.setdefault(path[:length], statement[0][2])
    return lines


def line_of(lines: dict[Key, int], path: Key) -> int:
    """The line of a key, or of the nearest table around it that has one."""
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), 1)


def _statements(text: str) -> list[list[_Token]]:
    """Tokens of each header and each key with its value, over as many lines as its brackets and texts span."""
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
    """The names of a header, or those in front of the equals sign."""
    names = []
    for kind, token, _ in statement:
        if token == "=" and kind == "sign":
            break
        if kind in ("text", "bare"):
            names.append(token if kind == "bare" else tomllib.loads(f"name = {token}")["name"])
    return tuple(names)
