"""The rules of the layout: imports run one way, and each library is spoken to in one place."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking.import_closure import imported_names, is_registry

ROOT = Path(__file__).parent.parent
OWN = {"hst", "pipeline", "jobs", "infra", "tests"}
OWN_ROOMS = ("hst", "pipeline", "jobs")
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
        "cluster/answering.py",
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


ROOMS = (
    # From the top floor down: a room imports from its own floor's rooms never, and from all floors below.
    {"jobs"},
    {"pipeline.benchmarks", "pipeline.drill", "pipeline.fanout", "pipeline.pretraining"},
    {"pipeline.workflow"},
    {"pipeline.reports"},
    {"pipeline.search"},
    {"pipeline.training"},
    {"pipeline.kinds"},
    {"pipeline.data", "pipeline.registry"},
    {"pipeline.tasks", "pipeline.tracking"},
    {"pipeline.storage", "pipeline.cluster"},
    {"pipeline.console", "pipeline.evaluation"},
    {"hst"},
)


def room_of(module: str) -> str:
    """``pipeline.data`` for pipeline.data.raw.cars; the package itself for others."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def arrows_up(imports: dict[str, set[str]]) -> list[str]:
    """Imports from one room into another that is not below it; ``imports`` has own modules by own module."""
    floors = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    return [
        f"{module} imports {name}"
        for module, names in imports.items()
        for name in sorted(names)
        if (here := room_of(module)) != (there := room_of(name)) and floors[here] >= floors[there]
    ]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty where there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        found = next((one for name in sorted(imports.get(module, ())) if (one := search(name, [*path, module]))), [])
        done.add(module)
        return found

    return next((found for module in sorted(imports) if (found := search(module, []))), [])


@functools.cache
def read_imports() -> dict[str, set[str]]:
    """By module of jobs, pipeline and hst, the modules of those packages that it imports."""
    files = {".".join(path.with_suffix("").parts): path for package in OWN_ROOMS for path in FILES[package]}
    found = {}
    for module, path in files.items():
        names = names_of(path)
        found[module] = {n for name in names for n in (name, name.rpartition(".")[0]) if n in files} - {module}
    return found


def own_imports() -> dict[str, set[str]]:
    """A copy of `read_imports` that a test may change."""
    return dict(read_imports())


def names_of(path: Path) -> set[str]:
    return imported_names((ROOT / path).read_text())


def is_within(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def test_no_import_runs_up() -> None:
    assert arrows_up(own_imports()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(own_imports()) == []


def test_an_arrow_that_runs_up_is_found() -> None:
    imports = own_imports()
    imports["pipeline.storage.files"] = imports["pipeline.storage.files"] | {"pipeline.training.loop"}
    assert arrows_up(imports) == ["pipeline.storage.files imports pipeline.training.loop"]


def test_an_arrow_between_two_rooms_of_one_floor_is_found() -> None:
    imports = own_imports()
    imports["pipeline.registry.cli"] = imports["pipeline.registry.cli"] | {"pipeline.data.errors"}
    assert arrows_up(imports) == ["pipeline.registry.cli imports pipeline.data.errors"]


def test_a_circle_is_found() -> None:
    imports = own_imports()
    imports["hst.config"] = imports["hst.config"] | {"hst.model"}
    found = circle(imports)
    assert found[0] == found[-1]
    assert {"hst.config", "hst.model"} <= set(found)


def test_few_files_stay_at_the_roots() -> None:
    assert len([path for path in FILES["pipeline"] if len(path.parts) == 2]) <= 4
    assert len([path for path in FILES["hst"] if len(path.parts) == 2]) <= 16


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(".".join(path.with_suffix("").parts)) for package in OWN_ROOMS for path in FILES[package]}
    assert rooms - {"pipeline.__init__"} == {room for floor in ROOMS for room in floor}


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
    source = (ROOT / path).read_text()
    assert not source or is_registry(source)


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
