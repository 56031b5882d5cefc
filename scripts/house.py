"""Measure the structure of the code: packages, imports between them, docstrings, duplicates, and the tests.

    python scripts/house.py             # a table for this checkout
    python scripts/house.py OTHER ...   # other checkouts beside it, for example one of an older commit

A room is a folder of `lorafit/`, or a file directly in it. An edge is a pair of rooms of which one imports the other.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path

# The packages and root modules of lorafit, the highest first: each imports only from itself and from those after it.
ORDER = (
    "__main__", "cli", "api", "reporters", "supervisor", "transfer", "exporters", "training", "ipc", "evaluation",
    "engines", "diagnostics", "run_folders", "planner", "data", "hardware", "models", "distributed", "registry", "config",
    "sampling", "paths", "atomic", "hashing", "progress", "units", "events", "errors", "messages",
    "__init__",  # the version; its other names are imported when they are asked for
)  # fmt: skip
DUPLICATE_LINES = 6  # equal lines in a row that make a duplicated pair
SMALL_FILE_LINES = 40


class House:
    """The code of one checkout of lorafit at `root`, read but not run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "lorafit"
        self.files = sorted(self.package.rglob("*.py"))
        self.tests = sorted((root / "tests").rglob("*.py"))
        self.trees = {path: ast.parse(path.read_text("utf-8")) for path in (*self.files, *self.tests)}

    def room(self, path: Path) -> str:
        """Return the folder of `path` below lorafit/, or the name of a file directly in it."""
        relative = path.relative_to(self.package)
        return relative.parent.as_posix() if len(relative.parts) > 1 else relative.stem

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Return each module's dotted name and its file."""
        return {
            ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in self.files
        }

    def imports(self, path: Path) -> Iterator[Path]:
        """Yield the files of lorafit that `path` imports."""
        for name, _node in imported(self.trees[path]):
            found = self.modules.get(name) or self.modules.get(name.rpartition(".")[0])
            if found is not None and found != path:
                yield found

    @cached_property
    def edges(self) -> dict[tuple[str, str], set[tuple[Path, Path]]]:
        """Return each pair of rooms, importer first, with the pairs of files behind it."""
        edges: dict[tuple[str, str], set[tuple[Path, Path]]] = defaultdict(set)
        for path in self.files:
            for other in self.imports(path):
                if self.room(path) != self.room(other):
                    edges[self.room(path), self.room(other)].add((path, other))
        return edges

    def upward(self) -> list[str]:
        """Return the imports from a lower package to a higher one, by ORDER; unknown packages count as the lowest."""
        rank = {name: place for place, name in enumerate(ORDER)}
        found = []
        for pairs in self.edges.values():
            for path, other in pairs:
                above, below = (self.room(file).split("/")[0] for file in (other, path))
                if rank.get(above, len(rank)) < rank.get(below, len(rank)):
                    found.append(f"{path.relative_to(self.root)} -> {other.relative_to(self.root)}")
        return sorted(found)

    def levels(self) -> int:
        """Return how many rooms the longest chain of imports passes, with a circle of rooms counted as one."""
        below: dict[str, set[str]] = defaultdict(set)
        for importer, room in self.edges:
            if not importer.startswith("__"):
                below[importer].add(room)
        reach = {room: _reachable(room, below) for room in list(below)}
        circle = {room: frozenset({room} | {o for o in reach[room] if room in reach.get(o, ())}) for room in reach}
        height: dict[frozenset[str], int] = {}

        def level(room: str) -> int:
            whole = circle.get(room, frozenset({room}))
            if whole not in height:
                beneath = {o for member in whole for o in below.get(member, ())} - whole
                height[whole] = 1 + max(map(level, beneath), default=0)
            return height[whole]

        return max(map(level, reach), default=1)

    def unused_names(self) -> list[str]:
        """Return the public names of modules to which no code outside the tests refers."""
        users = [*self.files, *self.root.glob("*.py"), *(self.root / "scripts").rglob("*.py")]
        users += (self.root / "benchmarks").rglob("*.py")
        used: set[str] = set()
        for path in users:
            used |= _references(self.trees.get(path) or ast.parse(path.read_text("utf-8")))
        found = []
        for path in self.files:
            for node in self.trees[path].body:
                names = [name for name in _defined(node) if not name.startswith("_") and name not in used]
                found += [f"{path.relative_to(self.root)}: {name}" for name in names]
        return found

    def question_docstrings(self) -> list[str]:
        """Return the places whose docstring asks a question in its first paragraph."""
        return [f"{path.relative_to(self.root)}:{line}" for path, line, text in self.docstrings() if "?" in text]

    def docstrings(self) -> Iterator[tuple[Path, int, str]]:
        """Yield file, line and first paragraph of each docstring of the package and the tests; code in it left out."""
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = (ast.get_docstring(node) or "").split("\n\n")[0]
                    yield path, getattr(node, "lineno", 1), re.sub(r"`[^`]*`", "", text)

    def cross_test_imports(self) -> list[str]:
        """Return the imports of one test module from another."""
        names = {path.stem for path in self.tests if path.stem.startswith("test_")}
        return [
            f"{path.relative_to(self.root)}: {name}"
            for path in self.tests
            for name, _node in imported(self.trees[path])
            if names & set(name.split("."))
        ]

    def monkeypatches(self) -> int:
        """Return how often the tests call monkeypatch.setattr."""
        return sum(path.read_text("utf-8").count("monkeypatch.setattr(") for path in self.tests)

    def duplicated_pairs(self) -> list[str]:
        """Return the pairs of package files that share DUPLICATE_LINES equal lines of code in a row."""
        places: dict[tuple[str, ...], set[Path]] = defaultdict(set)
        for path in self.files:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
            code = [line for line in lines if re.search(r"\w", line) and not re.match(r"#|import |from ", line)]
            for start in range(len(code) - DUPLICATE_LINES + 1):
                places[tuple(code[start : start + DUPLICATE_LINES])].add(path)
        pairs = {pair for paths in places.values() for pair in combinations(sorted(paths), 2)}
        return sorted(" ~ ".join(str(path.relative_to(self.root)) for path in pair) for pair in pairs)

    def figures(self) -> dict[str, str]:
        """Return the table's rows: what is counted, and the count."""
        importers = Counter(below for _above, below in self.edges)
        imports = Counter(above for above, _below in self.edges if not above.startswith("__"))
        rooms = {self.room(path) for path in self.files}
        small = [path for path in self.files if len(path.read_text("utf-8").splitlines()) < SMALL_FILE_LINES]
        modules = [text for path, line, text in self.docstrings() if line == 1 and path in self.files]
        return {
            "modules at the root": str(sum(path.parent == self.package for path in self.files)),
            "packages": str(sum("/" in room or (self.package / room).is_dir() for room in rooms)),
            "rooms": str(len(rooms)),
            "levels": str(self.levels()),
            "edges between rooms": str(len(self.edges)),
            "imports across rooms": str(sum(map(len, self.edges.values()))),
            "imports upward, by today's order": str(len(self.upward())),
            "most importers of a room": "{} ({})".format(*reversed(importers.most_common(1)[0])),
            "most rooms imported by one": "{} ({})".format(*reversed(imports.most_common(1)[0])),
            f"files under {SMALL_FILE_LINES} lines": f"{len(small)} of {len(self.files)}",
            "public names that nothing uses": str(len(self.unused_names())),
            "module docstrings that ask": str(sum("?" in text for text in modules)),
            "docstrings that ask": str(len(self.question_docstrings())),
            "duplicated pairs of files": str(len(self.duplicated_pairs())),
            "imports between test modules": str(len(self.cross_test_imports())),
            "monkeypatch.setattr": str(self.monkeypatches()),
        }


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield each imported name with its statement: `a.b.c` for `import a.b.c` and for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _references(tree: ast.AST) -> set[str]:
    """Return the names that the code reads, imports, or gives in a string such as "package.module:name"."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.:]+", node.value):
            found |= set(re.findall(r"\w+", node.value))
    return found


def _reachable(start: str, below: dict[str, set[str]]) -> set[str]:
    """Return the rooms that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for room in below.get(waiting.pop(), ()):
            if room not in seen:
                seen.add(room)
                waiting.append(room)
    return seen


def main(names: list[str]) -> None:
    """Print a table: a row for each figure, a column for each checkout."""
    roots = [Path(name) for name in names] or [Path(__file__).parents[1]]
    columns = [House(root).figures() for root in roots]
    print("| | " + " | ".join(str(root) for root in roots) + " |\n|---|" + "---|" * len(roots))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
