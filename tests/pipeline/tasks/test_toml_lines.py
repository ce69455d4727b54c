"""Lines of tables and keys, checked on a document in which every value is the number of its own line."""

import tomllib
from typing import Any

from pipeline.tasks.toml_lines import Key, line_numbers, line_of

DOCUMENT = r'''# a comment with "quotes", [brackets] and = signs
root = 2
a.dotted . key = 3

[plain]   # comment
key = 6
"quoted = key" = 7
'literal # key' = 8
"esc\u0061pe" = 9
1234 = 10

[ spaced . "with.dot" . 'x y' ]
key = 13
text = """
not = 0
[not.a.table]
\""" still in it
ends with quotes"""""
after_text = 19
literal = \'\'\'
[no] = 'x'
\'\'\'
after_literal = 23
list = [
  # comment ] here
  "]", '[', [1, 2],
  { x = 1 },
]
after_list = 29
inline = { inner = 30 }

[[many]]
key = 33
[outer.inner]
key = 35
[outer]
key = 37
'''.replace("\\'", "'")


def leaves(values: Any, path: Key = ()) -> list[tuple[Key, int]]:
    """Every integer in the document, with its path."""
    if isinstance(values, list):
        return [leaf for value in values if isinstance(value, dict) for leaf in leaves(value, path)]
    if isinstance(values, dict):
        return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]
    return [(path, values)] if isinstance(values, int) else []


def test_every_key_is_found_in_the_line_that_its_value_names() -> None:
    lines = line_numbers(DOCUMENT)
    expected = [(path, line) for path, line in leaves(tomllib.loads(DOCUMENT)) if path[-1] != "x"]
    assert len(expected) == 15
    assert {path: line_of(lines, path) for path, _ in expected} == dict(expected)
    assert not any("not" in part or "no" in path for path in lines for part in path)


def test_a_tables_line_is_its_header_and_a_missing_keys_that_of_the_table_around_it() -> None:
    lines = line_numbers(DOCUMENT)
    assert (lines["plain",], lines["many",], lines["outer", "inner"], lines["outer",]) == (5, 32, 34, 34)
    assert line_of(lines, ("plain", "nothing", "deeper")) == 5
    assert line_of(lines, ("nothing",)) == 1
