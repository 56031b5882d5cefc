"""The structure of the code: the order of packages, sizes, heavy imports, and what `lorafit --help` costs."""

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from house import ORDER, House, imported

house = House(ROOT)
PACKAGE = ROOT / "lorafit"
HEAVY = {"torch", "mlx", "mlx_lm", "transformers", "peft", "bitsandbytes", "accelerate"}
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 50, 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


@pytest.fixture(params=FILES, ids=name_of)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_the_root_holds_known_files_and_packages_only() -> None:
    """A new package or root module needs its place in ORDER of scripts/house.py."""
    assert {house.room(path).split("/")[0] for path in FILES} == set(ORDER)


def test_imports_never_go_up() -> None:
    assert not house.upward()


def test_imports_never_go_in_a_circle() -> None:
    module = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in module.items():
        names = {other for other, _node in imported(ast.parse(path.read_text("utf-8")))}
        names |= {other.rpartition(".")[0] for other in names}  # `from lorafit.units import GIB` names lorafit.units
        graph[name] = {other for other in names if other in module}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_import_is_relative(tree: ast.Module) -> None:
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_only_engines_import_tensor_libraries(path: Path, tree: ast.Module) -> None:
    heavy = {name.split(".")[0] for name, _node in imported(tree)} & HEAVY
    assert not heavy or house.room(path).startswith("engines")


def test_no_function_imports_our_own_package(path: Path, tree: ast.Module) -> None:
    """Only those of api.py do, since a command needs one of them and shall not load what the others need."""
    if path.name == "api.py":
        return
    inside = [node for function in functions(tree) for node in imported(function)]
    assert not [f"line {node.lineno}: {name}" for name, node in inside if name.split(".")[0] == "lorafit"]


def test_a_file_opens_with_a_docstring(tree: ast.Module) -> None:
    assert ast.get_docstring(tree)


def test_no_docstring_is_a_question() -> None:
    assert not house.question_docstrings()


def test_no_two_public_classes_have_one_name() -> None:
    names = Counter(node.name for path in FILES for node in house.trees[path].body if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_something_uses_every_public_name() -> None:
    assert not house.unused_names()


def test_no_test_module_imports_another() -> None:
    assert not house.cross_test_imports()


def test_files_and_functions_are_small(path: Path, tree: ast.Module) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES
    for function in functions(tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= MOST_FUNCTION_LINES, f"{function.name} has {lines} lines"


def test_functions_take_few_parameters(tree: ast.Module) -> None:
    for function in functions(tree):
        args = function.args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs) if arg.arg not in ("self", "cls")]
        assert len(names) <= MOST_PARAMETERS, f"{function.name} takes {len(names)}"


def test_the_command_line_starts_without_tensor_libraries() -> None:
    code = f"import sys, lorafit.cli.app; sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_planner_needs_no_tensor_library() -> None:
    code = f"import sys, lorafit.planner.planner; sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("face", ["train.py", "inference.py", "compare_models.py"])
def test_a_face_without_the_package_says_what_to_do_in_both_languages(face: str) -> None:
    # -S: this Python, as if nothing had been installed.
    done = subprocess.run([sys.executable, "-S", face], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "pip install -r requirements.txt" in done.stderr
    assert "请先运行" in done.stderr


def test_the_pages_of_settings_in_both_languages_and_of_the_layout_are_up_to_date() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "scripts/make_docs.py", "--check"], cwd=ROOT, env=environ)
    assert done.returncode == 0, "run `make docs`"


def test_the_pages_of_settings_have_the_same_flags_and_no_python_none() -> None:
    pages = [(ROOT / name).read_text("utf-8") for name in ("docs/cli.md", "docs/zh/cli.md")]
    english, chinese = ([line.split(" | ")[0] for line in page.splitlines() if line[:3] == "| `"] for page in pages)
    assert english == chinese
    assert len(english) > 100
    assert not [page for page in pages if "None" in page or "[]" in page]
