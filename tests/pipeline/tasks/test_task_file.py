"""Users' own tasks from TOML files, and everything that can be wrong in one."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from hst.config import HSN_PRESETS, HSNConfig
from pipeline.tasks.catalogue import TASKS, Task
from pipeline.tasks.recipe import Recipe
from pipeline.tasks.settings import apply_settings
from pipeline.tasks.task_file import choose_tasks
from pipeline.tasks.toml_table import as_kind

ROOT = Path(__file__).resolve().parents[3]


def written(folder: Path, text: str, name: str = "own.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def tasks_of(folder: Path, text: str) -> list[Task]:
    tasks, faults = choose_tasks([], [written(folder, text)])
    assert faults == []
    return tasks


def faults_of(folder: Path, text: str) -> list[str]:
    """The faults as `<line>: <what>`, after checking that each begins with the file's name."""
    file = written(folder, text)
    _, faults = choose_tasks([], [file])
    assert all(re.match(rf"{re.escape(file)}:\d+: ", fault) for fault in faults), faults
    return [fault.removeprefix(f"{file}:") for fault in faults]


def test_a_task_of_two_lines_has_the_defaults_of_the_catalogue(tmp_path: Path) -> None:
    assert tasks_of(tmp_path, '\n[tasks.acme-photos]\ndata = "photos"\n') == [
        Task(
            name="acme-photos",
            short_name="acme-photos",
            folder="acme-photos",
            group="own",
            num_classes=None,
            data=str(tmp_path / "photos"),
            origin=f"{tmp_path}/own.toml:2",
        )
    ]


def test_every_field_of_a_task_is_read(tmp_path: Path) -> None:
    text = """
        [tasks.acme-parts]
        folder = "parts"
        group = "acme"
        kind = "classification"
        metric = "top1"
        class_names = ["ok", "broken"]
        train_size = 80
        val_size = 20
        test_size = 30
        recipe = { epochs = 40, learning_rate = 1, clip_norm = "none", mean = [0, 0.5, 1], hsn = "HSN_S" }
        [tasks.acme-parts.hsn]
        num_registers = 2
        depths = "none"
        """
    assert tasks_of(tmp_path, text) == [
        Task(
            name="acme-parts",
            short_name="acme-parts",
            folder="parts",
            group="acme",
            num_classes=2,
            class_names=("ok", "broken"),
            train_size=80,
            val_size=20,
            test_size=30,
            metric="top1",
            recipe=Recipe(epochs=40, learning_rate=1.0, mean=(0.0, 0.5, 1.0), hsn="HSN_S"),
            hsn={"num_registers": 2, "depths": None},
            origin=f"{tmp_path}/own.toml:2",
        )
    ]


@pytest.mark.parametrize("part", [Recipe, HSNConfig])
def test_every_field_of_a_recipe_and_of_the_side_network_can_be_written_in_toml(part: type) -> None:
    kinds = typing.get_type_hints(part)
    for field in dataclasses.fields(part):
        value = field.default
        in_toml = "none" if value is None else list(value) if isinstance(value, tuple) else value
        assert as_kind(in_toml, kinds[field.name]) == value, field.name


def test_a_place_is_relative_to_the_file_or_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    places = {"photos": f"{tmp_path}/sub/photos", "../x/": f"{tmp_path}/x", "/abs/x": "/abs/x", "s3://b/k/": "s3://b/k"}
    text = "".join(f'[tasks.own-{i}]\ndata = "{place}"\n' for i, place in enumerate(places))
    written(tmp_path / "sub", text)
    tasks, faults = choose_tasks([], ["sub/own.toml"])
    assert (faults, [task.data for task in tasks]) == ([], list(places.values()))


def test_all_mistakes_of_a_file_are_told_together_with_their_lines(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        """title = "ours"
[tasks.acme-photos]
dta = "photos"
classes = 1
epochs = 3
kind = "detection"
data = "s3a://bucket/x"
[tasks.acme-photos.recipe]
epochs = "ten"
learnin_rate = 1e-3
drop_path = 2
std = [0.5,
       "x"]
num_registers = 2
[tasks.acme-photos.hsn]
widths = [32, 48, 64, 70]
num_registers = 65
use_global_token = 1
hsn = "HSN_S"
[tasks."Big Name"]
metric = "miou"
class_names = ["a", "a"]
classes = 2
[tasks.dtd]
group = "natural"
data = "x"
folder = "../y"
[tasks]
loose = 3
[tasks.two]
recipe = []
test_size = true
""",
    )
    expected = [
        "1: title: no such field; possible are tasks",
        "3: tasks.acme-photos.dta: no such field; did you mean data?",
        "5: tasks.acme-photos.epochs: no such field; epochs goes into the task's table .recipe",
        "4: tasks.acme-photos.classes: expected a whole number of at least 2; found 1",
        "6: tasks.acme-photos.kind: expected one of classification; found 'detection'",
        "9: tasks.acme-photos.recipe.epochs: expected a whole number; found 'ten', a text",
        "10: tasks.acme-photos.recipe.learnin_rate: no such field; did you mean learning_rate",
        "12: tasks.acme-photos.recipe.std: expected a list, each a number or \"none\"; found [0.5, 'x'], a list",
        "14: tasks.acme-photos.recipe.num_registers: no such field; num_registers goes into [tasks.acme-photos.hsn]",
        "11: tasks.acme-photos.recipe.drop_path: drop_path=2.0: expected a number from 0 to below 1",
        "18: tasks.acme-photos.hsn.use_global_token: expected true or false; found 1, a whole number",
        "19: tasks.acme-photos.hsn.hsn: no such field; hsn goes into [tasks.acme-photos.recipe]",
        "15: tasks.acme-photos.hsn: num_heads=(2, 4, 8, 12): 12 heads do not divide width 70",
        "7: tasks.acme-photos.data: address 's3a://bucket/x': expected a local path",
        "20: tasks.Big Name: no task name: expected lower-case letters",
        "21: tasks.Big Name.metric: expected one of top1; found 'miou'",
        "23: tasks.Big Name.classes: class_names says how many",
        "22: tasks.Big Name.class_names: name 2: 'a' (b'a') and 'a' (b'a', name 1) are the same class",
        "24: tasks.dtd: the catalogue has a task or a group of this name",
        "27: tasks.dtd.folder: data is the task's own folder",
        "27: tasks.dtd.folder: expected a folder below --data; found '../y'",
        "25: tasks.dtd.group: expected 'own' or a group of your own",
        f"26: tasks.dtd.data: {tmp_path}/x: no such folder",
        "29: tasks.loose: expected a table, [tasks.loose]; found 3, a whole number",
        "32: tasks.two.test_size: expected a whole number; found true, true or false",
        "31: tasks.two.recipe: expected a table, [tasks.two.recipe]; found [], a list",
    ]
    assert len(faults) == len(expected), "\n".join(faults)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start), fault


@pytest.mark.parametrize("folder", ["/etc", "..", "a/../../b", ""])
def test_a_folder_that_is_not_below_the_data_is_a_fault(tmp_path: Path, folder: str) -> None:
    (fault,) = faults_of(tmp_path, f'[tasks.own-x]\nfolder = "{folder}"\n')
    assert fault.startswith(f"2: tasks.own-x.folder: expected a folder below --data; found {folder!r}")


def test_two_independent_faults_of_a_side_network_are_both_told(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "[tasks.own-x.hsn]\nnum_registers = 65\nmlp_ratio = -1\nwidths = [1]\n")
    assert sorted(fault.partition(": tasks")[0] for fault in faults) == ["2", "3", "4"]


def test_the_preset_that_a_recipe_names_is_the_one_that_fields_are_checked_on(tmp_path: Path) -> None:
    heads = "[tasks.own-x.hsn]\nnum_heads = [2, 4, 8, 9]\n"  # 9 divides HSN_S's 36 and HSN_B's 72, not HSN_L's 384
    assert tasks_of(tmp_path, heads)[0].hsn == {"num_heads": (2, 4, 8, 9)}
    (fault,) = faults_of(tmp_path, f'[tasks.own-x]\nrecipe = {{ hsn = "HSN_L" }}\n{heads}')
    assert fault.startswith("4: tasks.own-x.hsn.num_heads: num_heads=(2, 4, 8, 9): 9 heads do not divide width 384")
    faults = faults_of(tmp_path, f'[tasks.own-x]\nrecipe = {{ hsn = "HSN_L", epochs = 0 }}\n{heads}')
    assert len(faults) == 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[tasks.own-x]\ndata = \n", r":2: not TOML: Invalid value \(column"),
        (b"[tasks.own-x]\ndata = photos\n", r":2: not TOML: Invalid value \(column 8\); texts need quotes"),
        (b"[tasks.own-x]\n[tasks.own-x]\n", r":2: not TOML: Cannot declare"),
        (b"[tasks.own-x]\n# \xff\n", r":2: not a UTF-8 text"),
        (b'x = """\n\n', r":\d: not TOML"),
        (b"", r":1: tasks: no task"),
        (b"[[tasks]]\n", r":1: tasks: expected a table, \[tasks\]; found"),
    ],
)
def test_a_file_that_holds_no_tasks_is_one_fault_with_its_line(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    tasks, faults = choose_tasks([], [f"{tmp_path}/own.toml"])
    assert (tasks, len(faults)) == ([], 1)
    assert re.search(fault, faults[0])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_file_from_windows_is_read(tmp_path: Path, encoding: str) -> None:
    text = '[tasks.own-x]\r\nclass_names = ["\N{LATIN SMALL LETTER E WITH ACUTE}meu ", "cat"]\r\nclases = 2\r\n'
    (tmp_path / "own.toml").write_bytes(text.encode(encoding))
    _, (fault,) = choose_tasks([], [f"{tmp_path}/own.toml"])
    assert fault.startswith(f"{tmp_path}/own.toml:3: tasks.own-x.clases: no such field")
    (tmp_path / "own.toml").write_bytes(text.replace("clases = 2\r\n", "").encode(encoding))
    (task,), faults = choose_tasks([], [f"{tmp_path}/own.toml"])
    assert (task.class_names, faults) == (("\N{LATIN SMALL LETTER E WITH ACUTE}meu", "cat"), [])


def test_a_file_in_another_encoding_is_told_its_line_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes('[tasks.own-x]\nclass_names = ["\xe9mu", "cat"]\n'.encode("cp1252"))
    _, (fault,) = choose_tasks([], [f"{tmp_path}/own.toml"])
    assert fault.startswith(f"{tmp_path}/own.toml:2: not a UTF-8 text: byte 30 of the file is 0xe9; if it is Windows")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ('["cat", "Cat"]', "name 2: 'Cat' (b'Cat') and 'cat' (b'cat', name 1) differ by case alone"),
        ('["1", "2", "002"]', "name 3: '002' (b'002') and '2' (b'2', name 2) differ by leading zeros alone"),
        ('["cat", "cat "]', "name 2: 'cat ' (b'cat ') and 'cat' (b'cat', name 1) are the same class"),
        ('["cat", ""]', "name 2: empty, expected a class name"),
        ('["cat"]', "expected at least 2 names; found 1"),
    ],
)
def test_class_names_that_look_alike_are_a_fault(tmp_path: Path, names: str, fault: str) -> None:
    (found,) = faults_of(tmp_path, f"[tasks.own-x]\nclass_names = {names}\n")
    assert found.startswith(f"2: tasks.own-x.class_names: {fault}")


def test_a_name_that_may_stand_in_a_file_that_cannot_be_read_is_not_reported_too(tmp_path: Path) -> None:
    _, (fault,) = choose_tasks(["own-x"], [written(tmp_path, "[tasks.own-x]\ndata =\n")])
    assert "not TOML" in fault


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    _, (fault,) = choose_tasks([], [str(tmp_path / "none.toml")])
    assert fault.startswith(f"{tmp_path}/none.toml: cannot be read (No such file")


def test_one_name_in_two_files_is_a_fault_and_one_file_named_twice_is_not(tmp_path: Path) -> None:
    first = written(tmp_path, "[tasks.own-x]\n", "a.toml")
    second = written(tmp_path, "\n[tasks.own-y]\n[tasks.own-x]\n", "b.toml")
    assert [task.name for task in choose_tasks([], [first, first])[0]] == ["own-x"]
    tasks, (fault,) = choose_tasks([], [first, second])
    assert fault == f"{second}:3: tasks.own-x: a task of this name stands in {first}:1 already"
    assert [task.name for task in tasks] == ["own-x", "own-y"]


def test_a_group_with_the_name_of_a_task_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, '[tasks.acme]\n[tasks.acme-x]\ngroup = "acme"\n')
    assert fault == "2: tasks.acme-x: group 'acme' is the name of a task, too"


def test_tasks_are_chosen_by_name_and_group_among_the_catalogues(tmp_path: Path) -> None:
    file = written(tmp_path, '[tasks.own-a]\n[tasks.own-b]\n[tasks.own-c]\ngroup = "acme"\n')

    def chosen(*names: str) -> list[str]:
        tasks, faults = choose_tasks(names, [file])
        assert faults == []
        return [task.name for task in tasks]

    assert chosen() == ["own-a", "own-b", "own-c"]
    assert chosen("own-b") == ["own-b"]
    assert chosen("own") == ["own-a", "own-b"]
    assert chosen("acme", "dtd", "own-a") == ["own-c", "vtab-dtd", "own-a"]
    assert chosen("all") == [name for name in TASKS if name.startswith("vtab-")]
    _, (fault,) = choose_tasks(["own-d"], [file])
    assert "did you mean own-" in fault


def test_without_a_file_no_name_is_the_benchmark_and_own_is_a_fault() -> None:
    tasks, faults = choose_tasks([], [])
    assert ([task.name for task in tasks], faults) == ([name for name in TASKS if name.startswith("vtab-")], [])
    assert "--task-file" in choose_tasks(["own"], [])[1][0]


def test_a_task_with_faults_is_not_reported_as_unknown_too(tmp_path: Path) -> None:
    file = written(tmp_path, "[tasks.own-x]\nclasses = 0\n")
    for names in (["own-x"], ["own"]):
        tasks, (fault,) = choose_tasks(names, [file])
        assert (tasks, "classes" in fault) == ([], True)


def test_settings_go_on_top_of_a_tasks_own_side_network() -> None:
    own = {"num_registers": 2, "mlp_ratio": 2.0}
    _, hsn, faults = apply_settings(Recipe(), ["hsn=HSN_S", "num_registers=3"], own)
    assert faults == []
    assert hsn == dataclasses.replace(HSN_PRESETS["HSN_S"], num_registers=3, mlp_ratio=2.0)
    _, _, (fault,) = apply_settings(Recipe(), ["hsn=HSN_L"], {"num_heads": (2, 4, 8, 9)})
    assert fault.startswith("--set hsn=HSN_L: num_heads=(2, 4, 8, 9): 9 heads do not divide width 384")


def test_the_readmes_file_is_a_sound_one(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (task,) = tasks_of(tmp_path, block[1])
    assert (task.name, task.data) == ("acme-photos", str(tmp_path / "photos"))
    assert f"hst-registry pull {task.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("given", "found"), [(r"photos\\cats", "photos/cats"), (r"od\\d", r"od\d")])
def test_a_backslash_in_a_place_separates_unless_a_folder_has_that_name(given: str, found: str, tmp_path: Path) -> None:
    (tmp_path / r"od\d").mkdir()
    (tmp_path / "acme.toml").write_text(f'[tasks.acme-x]\ndata = "{given}"\n')
    tasks, faults = choose_tasks([], [str(tmp_path / "acme.toml")])
    assert faults == []
    assert tasks[0].data == str(tmp_path / found)
