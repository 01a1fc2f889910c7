"""Mutants of the maths: how many small faults in the sources the tests notice.

    OMP_NUM_THREADS=1 nice -n 15 python tests/benchmarks/mutants.py [FILE ...]

A mutant has one fault: another comparison, operator, constant or function, a condition turned around, a statement or a
returned value left out. Messages, annotations and log lines stay as they are. Each runs the tests of its file
(``TESTS``) up to the first failure, in a fork of a process that has the libraries loaded; its loader gives it the
mutated source, so no file is touched. A test that takes three times the processor time and ten seconds more notices the
fault too. No other test of the suite is run, so the count is a lower bound. The JSON holds the last run of each file;
the YAML beside it says why each survivor does.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.machinery
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "tests/benchmarks/results/mutants.json"
#: A fault may ask for an array without end.
MEMORY = 8 * 2**30
#: The tests of each file, the quickest first.
TESTS = {
    "harness_ext/binning.py": ["harness_ext/test_binning.py"],
    "harness_ext/calibration.py": ["harness_ext/test_calibration.py", "harness_ext/test_differential.py"],
    "harness_ext/debiasing.py": ["harness_ext/test_debiasing.py", "harness_ext/test_intervals.py"],
    "harness_ext/documents.py": ["harness_ext/test_documents.py", "harness_ext/test_splits.py"],
    "harness_ext/estimators.py": ["harness_ext/test_estimators.py"],
    "harness_ext/floor.py": ["harness_ext/test_floor.py"],
    "harness_ext/inputs.py": ["harness_ext/test_inputs.py", "test_metrics.py"],
    "harness_ext/intervals.py": ["harness_ext/test_intervals.py"],
    "harness_ext/letters.py": ["harness_ext/test_letters.py", "harness_ext/test_sanity.py"],
    "harness_ext/metrics.py": ["harness_ext/test_metrics.py"],
    "harness_ext/prompts.py": ["harness_ext/test_prompts.py", "harness_ext/test_documents.py"],
    "harness_ext/ragged.py": ["harness_ext/test_ragged.py", "harness_ext/test_calibration.py"],
    "harness_ext/ranges.py": ["harness_ext/test_ranges.py"],
    "harness_ext/refinement.py": ["harness_ext/test_refinement.py"],
    "harness_ext/sanity.py": ["harness_ext/test_sanity.py"],
    "harness_ext/splits.py": ["harness_ext/test_splits.py"],
    "calibtune/results/samples.py": ["results/test_samples.py"],
    "calibtune/tuning/estep.py": ["tuning/test_estep.py"],
    "calibtune/tuning/losses.py": ["tuning/test_losses.py"],
    "calibtune/tuning/mean.py": ["tuning/test_mean.py"],
    "calibtune/tuning/targets.py": ["tuning/test_targets.py", "tuning/test_estep.py"],
    "calibtune/tuning/temperature.py": ["tuning/test_temperature.py"],
}
_SWAPS = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mult), (ast.Mod, ast.Mult), (ast.Pow, ast.Mult)),
    *((ast.BitAnd, ast.BitOr), (ast.And, ast.Or)),
]
SWAPS = {b: a for a, b in reversed(_SWAPS)} | dict(_SWAPS)
_NAMES = [("any", "all"), ("min", "max"), ("argmin", "argmax"), ("minimum", "maximum"), ("zeros", "ones")]
NAMES = {b: a for a, b in _NAMES} | dict(_NAMES)


def faults(node: ast.AST) -> Iterator[ast.AST]:
    """Yield nodes with one fault, to stand in a node's place."""
    match node:
        case ast.Compare(ops=[op]):
            yield changed(node, ops=[SWAPS[type(op)]()])
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPS:
            yield changed(node, op=SWAPS[type(node.op)]())
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield changed(node, value=not node.value)
        case ast.Constant(value=int() | float()):
            yield changed(node, value=node.value + 1)
        case ast.Name() if node.id in NAMES:
            yield changed(node, id=NAMES[node.id])
        case ast.Attribute() if node.attr in NAMES:
            yield changed(node, attr=NAMES[node.attr])
        case ast.If() | ast.IfExp() | ast.While():
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield changed(node, value=None)
        case ast.AugAssign() | ast.Expr():
            yield ast.Pass()


def changed(node: ast.AST, **fields: Any) -> ast.AST:
    """Return a copy of a node with other fields."""
    new = copy.copy(node)
    vars(new).update(fields)
    return new


class Fault(ast.NodeTransformer):
    """Put one fault into a tree: the one before which ``left`` others are found."""

    def __init__(self, tree: ast.AST, left: int) -> None:
        self.left = left
        self.what = ""
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def visit(self, node: ast.AST) -> Any:
        """Replace the node, or look below it."""
        if self.what or is_text(node):
            return node
        for new in faults(node):
            if not self.left:
                self.what = self.describe(node, new)
                return new
            self.left -= 1
        if isinstance(node, ast.AnnAssign):
            return changed(node, value=node.value and self.visit(node.value))
        return self.generic_visit(node)

    def describe(self, node: ast.AST, new: ast.AST) -> str:
        """Name a fault by its function and the code around it, since line numbers change with every edit."""
        whole = self.parents[node] if isinstance(node, ast.Constant | ast.Name | ast.Attribute) else node
        scopes, outer = [], node
        while outer := self.parents.get(outer):  # type: ignore[assignment]
            if isinstance(outer, ast.FunctionDef | ast.ClassDef):
                scopes.insert(0, outer.name)
        name = ".".join(scopes)
        return f"{name}{': ' * bool(name)}{first_line(whole)} -> {first_line(copy.deepcopy(whole, {id(node): new}))}"


def first_line(node: ast.AST) -> str:
    """Return the first line of a node's code."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()[0]


def is_text(node: ast.AST) -> bool:
    """Tell messages, docstrings, log lines and types, whose faults are not of the maths."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.ImportFrom() | ast.Import():
            return True
        case ast.Expr(value=ast.Call()) | ast.Subscript() | ast.Call():
            return ast.unparse(node).startswith(("logger.", "logging.", "Literal[", "Annotated[", "NDArray["))
    return False


def mutants(source: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield each fault of a source and the tree with it."""
    for left in itertools.count():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            elif isinstance(node, ast.arg):
                node.annotation = None
        fault = Fault(tree, left)
        tree = fault.visit(tree)
        if not fault.what:
            return
        yield fault.what, ast.fix_missing_locations(tree)


class Order:
    """Run first the tests that noticed the last faults, which notice most of the next ones too."""

    def __init__(self, first: list[str], note: Path) -> None:
        self.first = first
        self.note = note

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests."""
        items.sort(key=lambda item: [*self.first, item.nodeid].index(item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the test that fails."""
        if report.failed:
            self.note.write_text(report.nodeid)


def outcome(file: str, tree: ast.AST, limit: int, first: list[str], modules: Path | None = None) -> tuple[bool, float]:
    """Run the tests of a file in a fork with this tree in its place.

    Args:
        file: The source.
        tree: What it holds.
        limit: Seconds of processor time after which the tests fail.
        first: Names of the tests to begin with; one that fails is put in front.
        modules: File for the names of the libraries that were loaded.

    Returns:
        Whether the tests pass, and the seconds of processor time that they took.
    """
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "failed"
        if child := os.fork():
            _, status, usage = os.wait4(child, 0)
            if note.exists() and (name := note.read_text()):
                first[:] = [name, *(each for each in first if each != name)]
            return status == 0, usage.ru_utime + usage.ru_stime
        # A busy machine is no fault, but a test may wait for ever.
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(20 * limit)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        code = 1
        with contextlib.suppress(BaseException):
            code = run_tests(file, tree, Order(first, note), f"{folder}/tests")
            if modules:
                modules.write_text("\n".join(name for name, module in list(sys.modules.items()) if is_library(module)))
        os._exit(int(code))


def run_tests(file: str, tree: ast.AST, order: Order, folder: str) -> int:
    """Import a file from this tree from now on, and run its tests."""
    path, get_code = str(ROOT / file), importlib.machinery.SourceFileLoader.get_code

    def mutated(self: Any, name: str) -> Any:
        return compile(tree, path, "exec") if self.path == path else get_code(self, name)

    importlib.machinery.SourceFileLoader.get_code = mutated  # type: ignore[method-assign]
    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], derandomize=True, database=None
    )
    hypothesis.settings.load_profile("mutants")
    tests = [str(ROOT / "tests" / each) for each in TESTS[file] if (ROOT / "tests" / each).exists()]
    options = ["-x", "-q", "--tb=no", "-pno:cacheprovider", "--timeout=0", f"--basetemp={folder}", f"--rootdir={ROOT}"]
    return int(pytest.main([*options, *tests], plugins=[order]))


def is_library(module: Any) -> bool:
    """Tell libraries, which a fork may share, from what may hold a fault."""
    path = getattr(module, "__file__", None)
    return bool(path) and not path.startswith(f"{ROOT}/")


def measure(file: str, known: list[str] | None) -> dict[str, Any]:
    """Run all mutants of a file, or those that are known to survive fewer tests."""
    source = (ROOT / file).read_text(encoding="utf-8")
    whole = ast.parse(source)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "modules"
        if not outcome(file, whole, 600, [], names)[0]:
            raise SystemExit(f"the tests of {file} fail without a fault")
        for name in names.read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    for name in [name for name, module in sys.modules.items() if name != "__main__" and not is_library(module)]:
        if name.startswith(("harness_ext", "calibtune")):
            del sys.modules[name]
    limit = int(3 * outcome(file, whole, 600, [])[1]) + 10
    survivors, count, first = [], 0, []  # type: ignore[var-annotated]
    for what, tree in mutants(source):
        count += 1
        if (known is None or what in known) and outcome(file, tree, limit, first)[0]:
            survivors.append(what)
            print(f"{file} {what}", flush=True)
    return {"mutants": count, "killed": count - len(survivors), "survivors": survivors}


def main() -> None:
    """Measure the files that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="such as harness_ext/binning.py")
    parser.add_argument("--again", action="store_true", help="only survivors of the last run, after tests were added")
    parser.add_argument("--output", type=Path, default=JSON)
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    for file in args.files or TESTS:
        begin = time.monotonic()
        found[file] = measure(file, found[file]["survivors"] if args.again else None)
        print(
            f"{file}: {found[file]['killed']} of {found[file]['mutants']}, {time.monotonic() - begin:.0f} s", flush=True
        )
        args.output.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
