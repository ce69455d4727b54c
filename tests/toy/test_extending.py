"""docs/extending.md shows the toy as it is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("number_head", "last_patches", "number", "mean_error", "regression")


@pytest.mark.parametrize("name", SHOWN)
def test_each_file_of_the_toy_stands_in_the_document_as_it_is(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
    assert (ROOT / f"tests/toy/{name}.py").read_text(encoding="utf-8") in blocks


@pytest.mark.parametrize("name", SHOWN)
def test_a_seam_takes_few_lines(name: str) -> None:
    lines = (ROOT / f"tests/toy/{name}.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("import", "from", '"""'))]
    assert len(code) <= 26, "a head, a method, a label, a metric and a kind in about twenty lines each"
