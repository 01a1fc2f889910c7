"""Which modules may import which, and where torch may be loaded."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Packages that load torch; lm_eval does.
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "lm_eval"}


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree, functions=True):
    """Return the modules that a file imports; functions=False omits functions and `if TYPE_CHECKING`."""
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
    """Return all modules that importing a file loads, direct or indirect."""
    found, waiting = set(), [path]
    while waiting:
        new = imports(tree_of(waiting.pop()), functions=False) - found
        found |= new
        waiting += [file for file in map(file_of, new) if file]
    return found


@pytest.mark.parametrize("path", sources("harness_ext"), ids=name_of)
def test_harness_ext_imports_neither_calibtune_nor_torch(path):
    assert not packages(imports(tree_of(path))) & ({"calibtune"} | HEAVY - {"lm_eval"})


@pytest.mark.parametrize("path", [ROOT / "calibtune/__main__.py", *sources("calibtune/commands")], ids=name_of)
def test_command_module_loads_no_torch(path):
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
def test_results_and_reporting_load_no_torch(path):
    assert not packages(imports(tree_of(path)) | loaded(path)) & HEAVY


def test_loaded_follows_indirect_imports():
    # letters.py registers a filter with the harness; samples.py would get torch by importing it.
    assert "lm_eval" in packages(loaded(ROOT / "harness_ext/letters.py"))
    assert "lm_eval" not in packages(loaded(ROOT / "harness_ext/calibration.py"))


def test_calibration_maths_imports_only_numpy():
    allowed = {"__future__", "collections", "dataclasses", "functools", "harness_ext", "numpy", "typing"}
    for name in (
        "binning",
        "calibration",
        "debiasing",
        "estimators",
        "floor",
        "inputs",
        "intervals",
        "ranges",
        "refinement",
    ):
        assert packages(imports(tree_of(ROOT / "harness_ext" / f"{name}.py"))) <= allowed


#: Layers from top to bottom: a module may import from its own package and from lower layers.
LAYERS = (
    {"commands"},
    {"demo", "publish", "reproduce"},
    {"__main__", "api"},
    {"mending"},
    {"estimate"},
    {"evaluation", "reporting", "steps", "tuning", "winrate"},
    {"metrics"},
    {"artifacts", "results"},
    {"models"},
    {"data"},
    {"endpoints", "locks", "parallel", "recipe"},
    {"bar", "files", "processes", "reading", "spec", "text"},
    {"errors"},
)


def layer_of(module):
    """Return the layer of a calibtune module, 0 at the top."""
    package = module.split(".")[1]
    return next(number for number, packages_in_layer in enumerate(LAYERS) if package in packages_in_layer)


@pytest.mark.parametrize(
    "path", [p for p in sources("calibtune") if p.parent.name != "calibtune" or p.stem != "__init__"], ids=name_of
)
def test_modules_import_only_lower_layers(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imports(tree_of(path)):
        if name.startswith("calibtune.") and file_of(name):
            same_package = name.split(".")[1] == module.split(".")[1]
            assert same_package or layer_of(name) > layer_of(module), f"{module} imports {name}"


def test_no_circular_imports():
    found = {}
    for path in sources("calibtune", "harness_ext"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        # The package itself imports its public names lazily.
        lazy = module == "calibtune"
        found[module] = {name for name in imports(tree_of(path), functions=not lazy) if file_of(name)}
    cycles = [(a, b) for a, names in found.items() for b in names if a in found.get(b, ()) and a != b]
    assert cycles == []


def test_task_folder_contains_no_code():
    kinds = {path.suffix for path in (ROOT / "lm_eval_tasks").rglob("*") if path.is_file()}
    assert kinds <= {".yaml", ".md", ""}


def test_tracked_files_contain_no_local_paths():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    # Joined here, so that this file does not contain them.
    paths = ["/" + "/".join(parts) for parts in (("work", ""), ("opt", ""), ("home", ""), ("root", ""), ("Users", ""))]
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            found += [f"{name}:{number}: {line.strip()[:80]}" for bad in paths if bad in line.replace("/usr/local", "")]
    assert found == []
