"""The toy through the whole pipeline: jobs run in a copy of the packages that differs by its registrations alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hst.preprocessing import Preprocessing
from tests.toy.regression_data import write_bars

ROOT = Path(__file__).resolve().parents[2]
REGISTRATIONS = {
    # A file of the packages -> a line of it, and what is added behind that.
    "hst/heads/__init__.py": ("HEADS: dict[str, str] = {", '"number": "tests.toy.number_head:NumberHead",'),
    "hst/methods.py": ("METHODS: dict[str, str] = {", '"last_patches": "tests.toy.last_patches:LastPatches",'),
    "pipeline/kinds/__init__.py": ("KINDS: dict[str, str] = {", '"regression": "tests.toy.regression:Regression",'),
    "pipeline/data/annotations/__init__.py": (
        "ANNOTATIONS: dict[str, str] = {",
        '"number": "tests.toy.number:Number",',
    ),
    "pipeline/tasks/kinds.py": (
        "MEASURES: dict[str, tuple[Measure, ...]] = {",
        '"regression": (Measure(name="mae", unit="widths", higher_is_better=False),),',
    ),
}
TASK_FILE = """
[tasks.toy-bar]
kind = "regression"
data = "toy-bar"
[tasks.toy-bar.recipe]
method = "last_patches"
image_size = 64
batch_size = 6
learning_rate = 1e-2
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a module or a script of the copy; returns what it prints."""
    root = tmp_path_factory.mktemp("toy-repository")
    for package in ("hst", "pipeline", "jobs", "tests"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (behind, line) in REGISTRATIONS.items():
        text = (root / name).read_text()
        assert text.count(behind) == 1, name
        (root / name).write_text(text.replace(behind, f"{behind}\n    {line}"))
    kinds = root / "pipeline/tasks/kinds.py"
    annotations = "ANNOTATIONS: dict[str, str] = {"
    kinds.write_text(kinds.read_text().replace(annotations, f'{annotations}\n    "regression": "number",'))
    write_bars(root / "toy-bar", train=60, test=20)
    (root / "toy.toml").write_text(TASK_FILE)
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
        "HST_STORAGE": str(root / "storage"),
        "HST_CACHE": str(root / "cache"),
    }

    def ran(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return ran


def fanout(run: Run, *options: str) -> str:
    job = ["jobs/fanout_vtab.py", "--task-file", "toy.toml", "--backbone", "hst_vit_micro_patch8_64"]
    return run(*job, *options)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_searched_trained_registered_promoted_shown_and_pulled(run: Run, tmp_path: Path) -> None:
    searched = fanout(run, "--set", "epochs=2", "--search", "2", "--search-epochs", "2")
    assert "searching drop_path, learning_rate, weight_decay" in searched
    assert "val/mae" in searched
    (row,) = [line for line in searched.splitlines() if line.startswith("toy-bar  ")]
    assert row.endswith("1*")
    assert "toy-bar is measured by mae in widths; lower is better" in searched
    assert "%" not in row

    by_hst = fanout(run, "--set", "epochs=12", "--set", "method=hst", "--set", "hsn=HSN_S")
    assert "version 2 (champion)" in by_hst
    again = fanout(run, "--set", "epochs=12", "--set", "method=hst", "--set", "hsn=HSN_S")
    assert "trained before, not again" in again

    untrained = fanout(run, "--set", "epochs=1", "--set", "learning_rate=1e-6")
    assert "version 3 (not champion: val " in untrained
    assert " widths is worse than " in untrained
    shown = run("-m", "pipeline.registry.cli", "show", "toy-bar")
    assert "mae" in shown
    assert " widths" in shown

    run("-m", "pipeline.registry.cli", "pull", "toy-bar", "--dest", str(tmp_path), "--with-backbone")
    backbone = next(tmp_path.glob("backbone-*.safetensors"))
    program = (
        "import sys, torch\n"
        "from hst import backbone, checkpoint\n"
        "vit = backbone.load_backbone('hst_vit_micro_patch8_64', sys.argv[1])\n"
        "model, header = checkpoint.load_task_model(sys.argv[2], vit)\n"
        "print(header.kind, header.method['name'], *model.head.decode(model.predict(torch.load(sys.argv[3])), []))\n"
    )
    pixels = torch.full((1, 3, 64, 64), 30, dtype=torch.uint8)
    pixels[..., 40:52] = 220
    torch.save(Preprocessing(image_size=64).normalize(pixels), tmp_path / "image.pt")
    kind, method, answer = run(
        "-c", program, str(backbone), str(tmp_path / "toy-bar.safetensors"), str(tmp_path / "image.pt")
    ).split()
    assert (kind, method) == ("regression", "hst")
    assert abs(float(answer) - 40 / 52) < 0.25
