"""The rules of the layout: imports run one way, and each library is spoken to in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"hst", "pipeline", "jobs", "infra", "tests"}
FILES = {
    package: sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))
    for package in ("hst", "pipeline", "jobs", "infra")
}
EVERY_FILE = [path for files in FILES.values() for path in files]

HST_LIBRARIES = {"torch", "timm", "torchvision", "safetensors", "numpy", "PIL"}
KERNELS = Path("hst/gpu/kernels")
WITH_TRITON = {Path("hst/gpu/fused_side_block.py"), Path("hst/plain.py"), Path("hst/vit/stream_norm.py")}
"""Files that call the kernels where torch has brought Triton along."""

# A library of the pipeline -> the only files (or folders) of pipeline/ that import it, lazily or not. The longest
# matching name decides: `ray.train` is for training/on_ray alone, the rest of Ray is also for what schedules.
SPOKEN_IN = {
    "ray.train": ["training/on_ray"],
    "ray.tune": ["search/tuning.py", "search/tune_hooks.py"],
    "ray": [
        "training/on_ray",
        "cluster/ray_cluster.py",
        "search/tuning.py",
        "search/tune_hooks.py",
        "drill/cluster.py",
    ],
    "mlflow": ["tracking", "registry"],
    "webdataset": ["data"],
    "boto3": ["storage"],
    "matplotlib": ["reports"],
    "optuna": ["search/sampler.py"],
}


def imported_names(source: str) -> set[str]:
    """Every dotted name that the source imports, inside functions too: ``from ray import train`` gives ray.train."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
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


def names_of(path: Path) -> set[str]:
    return imported_names((ROOT / path).read_text())


def is_within(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def test_the_reading_of_imports_finds_every_kind() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
    assert imported_names(source) == {"a.b", "c.d", "e", "g.h"}


def test_every_package_has_files() -> None:
    assert all(FILES.values()), FILES


@pytest.mark.parametrize("path", FILES["hst"], ids=str)
def test_hst_imports_torch_timm_torchvision_safetensors_and_itself_alone(path: Path) -> None:
    tops = {name.partition(".")[0] for name in names_of(path)}
    own = {"hst", "triton"} if path in WITH_TRITON or KERNELS in path.parents else {"hst"}
    assert tops - set(sys.stdlib_module_names) - HST_LIBRARIES - own == set()


@pytest.mark.parametrize("path", FILES["pipeline"], ids=str)
def test_pipeline_imports_no_job(path: Path) -> None:
    assert {name.partition(".")[0] for name in names_of(path)} & OWN <= {"hst", "pipeline"}


@pytest.mark.parametrize("path", FILES["jobs"], ids=str)
def test_a_job_is_imported_by_nobody_and_imports_pipeline(path: Path) -> None:
    assert {name.partition(".")[0] for name in names_of(path)} & OWN <= {"hst", "pipeline"}


@pytest.mark.parametrize("path", FILES["infra"], ids=str)
def test_infra_stands_beside_the_code(path: Path) -> None:
    assert {name.partition(".")[0] for name in names_of(path)} & OWN <= {"infra"}


@pytest.mark.parametrize("path", FILES["pipeline"], ids=str)
def test_each_library_is_spoken_to_in_one_place(path: Path) -> None:
    inside = path.relative_to("pipeline")
    for name in names_of(path):
        library = max((library for library in SPOKEN_IN if is_within(name, library)), key=len, default=None)
        if library is not None:
            places = [Path(place) for place in SPOKEN_IN[library]]
            assert any(place in (inside, *inside.parents) for place in places), (
                f"{path} imports {name}, which is for {SPOKEN_IN[library]}"
            )


@pytest.mark.parametrize("path", EVERY_FILE, ids=str)
def test_a_file_is_short_and_named_for_what_is_in_it(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert len((ROOT / path).read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in EVERY_FILE if path.name == "__init__.py"], ids=str)
def test_an_init_file_is_empty_or_holds_one_literal_dict(path: Path) -> None:
    body = ast.parse((ROOT / path).read_text()).body
    if body:
        (assignment,) = body
        assert isinstance(assignment, ast.Assign | ast.AnnAssign)
        assert isinstance(assignment.value, ast.Dict)
        ast.literal_eval(assignment.value)


def run_python(code: str) -> str:
    """Run code in a new interpreter, in the repository's root; return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


ALONE = """
import importlib, importlib.metadata as metadata, json, re, runpy, sys

# The distributions that hst's dependencies need, theirs included; what is installed besides is hidden.
names, needed = ["torch", "timm", "torchvision", "safetensors"], set()
while names:
    name = re.sub("[-_.]+", "-", names.pop()).lower()
    if name in needed:
        continue
    needed.add(name)
    try:
        requirements = metadata.distribution(name).requires or []
    except metadata.PackageNotFoundError:
        continue
    names += [re.match("[A-Za-z0-9._-]+", text).group() for text in requirements if "extra ==" not in text]

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

installed = metadata.packages_distributions()
hidden = {top for top, owners in installed.items() if not needed & {normal(owner) for owner in owners}}
hidden = (hidden | {"pipeline", "jobs"}) - {"hst", "setuptools", "pkg_resources", "_distutils_hack"}
assert {"ray", "mlflow", "webdataset", "boto3", "sklearn", "pandas"} <= hidden, hidden

class Without:  # finds what another finder finds, but for what is hidden: find_spec says None, as for what is absent
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def test_hst_works_where_torch_timm_torchvision_and_safetensors_are_alone() -> None:
    modules = [".".join(path.with_suffix("").parts) for path in FILES["hst"]]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    describe = ["describe", "vit_base_patch16_224", "--hsn", "HSN_B", "--num-classes", "100"]
    printed = run_python(
        f"{ALONE}\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"sys.argv = ['hst', *{describe!r}]\n"
        "runpy.run_module('hst', run_name='__main__', alter_sys=True)\n"
    )
    assert "764840" in printed  # the paper's code's count, as a plain integer


def test_hst_works_where_torch_has_not_brought_triton() -> None:
    modules = [".".join(path.with_suffix("").parts) for path in FILES["hst"] if KERNELS not in path.parents]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    run_python(
        "import importlib, sys\n"
        "sys.modules['triton'] = None\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
    )


def test_a_checkpoints_header_is_read_without_torch() -> None:
    run_python(
        "import sys\n"
        "for name in ('torch', 'safetensors', 'numpy', 'timm', 'torchvision'): sys.modules[name] = None\n"
        "from hst.checkpoint import read_header, verify_file\n"
        "for read in (read_header, verify_file):\n"
        "    try: read('pyproject.toml')\n"
        "    except ValueError as error: assert 'pyproject.toml' in str(error), error\n"
        "    else: raise SystemExit('a text file was taken for a checkpoint')\n"
    )


def test_the_pipelines_entry_for_people_starts_without_what_is_slow() -> None:
    run_python(
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow', 'boto3'): sys.modules[name] = None\n"
        "import pipeline.registry.cli\n"
    )
