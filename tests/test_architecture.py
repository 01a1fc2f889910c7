"""The arrows of the design: who may import whom, and where torch may be loaded."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: What loads torch; lm_eval does.
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "lm_eval"}


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree, functions=True):
    """Top-level names of the modules that a file imports; without those in functions and `if TYPE_CHECKING`."""
    found = set()
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        hidden = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if functions or not hidden:
            waiting.extend(ast.iter_child_nodes(node))
    return found


def packages(names):
    return {name.split(".")[0] for name in names}


def tree_of(path):
    return ast.parse(path.read_text())


def file_of(module):
    for path in (ROOT / f"{module.replace('.', '/')}.py", ROOT / module.replace(".", "/") / "__init__.py"):
        if path.is_file():
            return path
    return None


def loaded(path):
    """Every module that importing a file loads, of ours and of others."""
    found, waiting = set(), [path]
    while waiting:
        new = imports(tree_of(waiting.pop()), functions=False) - found
        found |= new
        waiting += [file for file in map(file_of, new) if file]
    return found


@pytest.mark.parametrize("path", sources("harness_ext"), ids=name_of)
def test_the_harness_side_imports_neither_calibtune_nor_torch(path):
    assert not packages(imports(tree_of(path))) & ({"calibtune"} | HEAVY - {"lm_eval"})


@pytest.mark.parametrize("path", [ROOT / "calibtune/__main__.py", *sources("calibtune/commands")], ids=name_of)
def test_a_command_is_listed_and_explained_without_torch(path):
    assert not packages(loaded(path)) & HEAVY


LIGHT = [
    ROOT / "calibtune" / name
    for name in (
        "api.py",
        "metrics.py",
        "tuning/temperature.py",
        "results/samples.py",
        "results/measures.py",
        "files.py",
        "commands/rescore.py",
    )
]


@pytest.mark.parametrize("path", [*LIGHT, *sources("calibtune/reporting")], ids=name_of)
def test_what_reads_results_never_loads_torch(path):
    assert not packages(imports(tree_of(path)) | loaded(path)) & HEAVY


def test_the_check_itself_sees_an_import_through_another_module():
    # letters.py registers a filter with the harness; samples.py would get torch by importing it.
    assert "lm_eval" in packages(loaded(ROOT / "harness_ext/letters.py"))
    assert "lm_eval" not in packages(loaded(ROOT / "harness_ext/calibration.py"))


def test_the_pure_maths_imports_numpy_and_itself_alone():
    allowed = {"__future__", "collections", "dataclasses", "functools", "harness_ext", "numpy", "typing"}
    for name in ("binning", "calibration", "debiasing", "estimators", "inputs", "intervals"):
        assert packages(imports(tree_of(ROOT / "harness_ext" / f"{name}.py"))) <= allowed


#: The floors of the house: a module may import from its own floor's package and from floors below.
FLOORS = (
    {"commands"},
    {"demo"},
    {"__main__", "api"},
    {"evaluation", "reporting", "tuning", "winrate"},
    {"metrics"},
    {"artifacts", "results"},
    {"models"},
    {"data"},
    {"recipe"},
    {"bar", "files", "processes", "spec"},
    {"errors"},
)


def floor_of(module):
    """The floor of a module of calibtune, 0 at the top."""
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize(
    "path", [p for p in sources("calibtune") if p.parent.name != "calibtune" or p.stem != "__init__"], ids=name_of
)
def test_imports_go_down_and_never_across(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imports(tree_of(path)):
        if name.startswith("calibtune.") and file_of(name):
            same_room = name.split(".")[1] == module.split(".")[1]
            assert same_room or floor_of(name) > floor_of(module), f"{module} imports {name}"


def test_no_two_modules_import_each_other():
    found = {}
    for path in sources("calibtune", "harness_ext"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        # The package itself offers what lies below it, and imports that when it is first used.
        lazy = module == "calibtune"
        found[module] = {name for name in imports(tree_of(path), functions=not lazy) if file_of(name)}
    circles = [(a, b) for a, names in found.items() for b in names if a in found.get(b, ()) and a != b]
    assert circles == []


def test_the_task_folder_holds_no_code():
    kinds = {path.suffix for path in (ROOT / "lm_eval_tasks").rglob("*") if path.is_file()}
    assert kinds <= {".yaml", ".md", ""}


def test_every_task_file_is_seen_by_the_harness():
    from harness import TASKS, manager

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    names = [yaml.load(path.read_text(), Loader) for path in TASKS.rglob("*.yaml")]
    assert {config.get("task") if "group" not in config else config["group"] for config in names} == set(
        manager().all_tasks
    )


def test_no_path_of_one_machine_is_in_a_tracked_file():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    # Put together here, so that this file does not hold them itself.
    paths = ["/" + "/".join(parts) for parts in (("work", ""), ("opt", ""), ("home", ""), ("root", ""), ("Users", ""))]
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            found += [f"{name}:{number}: {line.strip()[:80]}" for bad in paths if bad in line.replace("/usr/local", "")]
    assert found == []
