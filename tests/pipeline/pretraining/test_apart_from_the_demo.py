"""The pretraining uses nothing of the demo's tasks, neither generator nor digits, so they can measure its worth."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OWN = ("hst", "pipeline", "jobs")


def imported(file: Path) -> set[str]:
    """Every dotted name that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reached(*files: str) -> set[str]:
    """The modules that these files import, directly or through our own modules."""
    waiting = [ROOT / file for file in files]
    seen: set[str] = set()
    while waiting:
        for name in imported(waiting.pop()) - seen:
            seen.add(name)
            file = ROOT / Path(*name.split(".")).with_suffix(".py")
            if name.partition(".")[0] in OWN and file.is_file():
                waiting.append(file)
    return seen


PRETRAINING = [
    "jobs/pretrain_demo_vit.py",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "pipeline" / "pretraining").glob("*.py")),
]


def test_pretraining_reaches_nothing_of_the_data_or_of_scikit_learn() -> None:
    modules = reached(*PRETRAINING)
    assert "pipeline.pretraining.drawings" in modules
    assert "hst.randomness" in modules
    assert {name for name in modules if name.startswith(("pipeline.data", "pipeline.tasks", "sklearn"))} == set()


def test_the_demo_reaches_nothing_of_the_pretraining() -> None:
    modules = reached("pipeline/data/demo.py", "jobs/make_demo_data.py")
    assert "pipeline.data.demo" in modules
    assert {name for name in modules if name.startswith("pipeline.pretraining")} == set()


def test_pretraining_runs_where_there_is_no_data_and_no_scikit_learn(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('sklearn', 'pipeline.data', 'pipeline.tasks', 'webdataset'): sys.modules[name] = None\n"
        "from jobs.pretrain_demo_vit import main\n"
        f"sys.exit(main(['--output', {str(tmp_path / 'vit.safetensors')!r}, '--minutes', '0']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 3, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["vit.safetensors.state.tmp"]
