"""What the documents show is there: files, headings, commands and their options. They stay short and narrow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for folder in (".", "docs", "hst", "infra", "pipeline")
    for path in (ROOT / folder).glob("*.md")
    if path.name != "CHANGELOG.md"
)
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("jobs", "pipeline", "infra", "hst")
    for path in (ROOT / folder).rglob("*.py")
)
OTHERS = {"--help", "--working-dir"}
"""Options of commands that are not the project's."""


def text_of(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_lines_are_narrow(document: Path) -> None:
    assert [line for line in text_of(document).splitlines() if len(line) >= 120] == []


def test_the_readme_is_short() -> None:
    assert len(text_of(Path("README.md")).splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / document.parent / name).resolve().relative_to(ROOT) if name else document
        if not (ROOT / target).exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_and_their_options_exist(document: Path) -> None:
    text = text_of(document)
    files = re.findall(r"\bpython (jobs/\w+\.py)", text)
    files += [f"{name.replace('.', '/')}.py" for name in re.findall(r"-m ((?:pipeline|infra)[.\w]+\w)", text)]
    assert [name for name in files if not (ROOT / name).exists()] == []
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - OTHERS
    assert [option for option in sorted(options) if f'"{option}"' not in SOURCES] == []
