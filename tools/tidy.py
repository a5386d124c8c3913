"""The house rules that a program can check. `python -m tools.tidy` prints `file:line: what is wrong`, or nothing.

Text is enough: the files are formatted by ruff and clang-format, so a function starts and ends in column 0.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
GENERATED = ("libpharaoh/errors.py",)

# Who may import whom: docs/internals/design.md. Every other directory may import what it likes but not be imported.
PACKAGES = {
    "libpharaoh": {"libpharaoh"},
    "pharaohd": {"libpharaoh", "pharaohd"},
    "tools": {"libpharaoh", "pharaohd", "tools"},
    "bench": {"libpharaoh", "pharaohd", "tools", "bench"},
    "demo": {"libpharaoh", "pharaohd", "demo"},
    "examples": {"libpharaoh", "examples"},
    "tests": {"libpharaoh", "pharaohd", "tools", "bench", "demo", "examples", "tests"},
}
PRODUCT = ("libpharaoh", "pharaohd")

# The layers of the daemon's C core, a folder each, and what each may use: calls and includes go down only, upward by
# functions that are set at construction. "" is the folder itself: the worker, which owns all. docs/internals/design.md.
CORE = "pharaohd/csrc/"
LAYERS = {
    "base": {"base"},
    "durable": {"base", "durable"},
    "engine": {"base", "durable", "engine"},
    "transport": {"base", "transport"},
    "rpc": {"base", "transport", "rpc"},
    "service": {"base", "durable", "engine", "transport", "rpc", "service"},
    "": {"", "base", "durable", "engine", "transport", "rpc", "service"},
}

# The supervisor is handed its children's entries, so that neither side knows the other.
STRANGERS = {
    pair
    for child in ("pharaohd.worker", "pharaohd.router")
    for pair in (("pharaohd.supervisor", child), (child, "pharaohd.supervisor"))
}

# The only files of the product, or directories, that import a third-party package.
THIRD_PARTY = {
    "cffi": {"pharaohd/_build.py"},
    "click": {"pharaohd/cli.py", "pharaohd/ctl/"},
    "fastavro": {"pharaohd/canonical.py"},
    "msgpack": {"libpharaoh/_framing.py"},
    "posix_ipc": {"pharaohd/stats.py"},
    "setproctitle": {"pharaohd/process.py"},
    "structlog": {"pharaohd/log.py"},
}

MEMORY_ORDER = re.compile(r"\b(__atomic_\w+|__ATOMIC_\w+|__sync_\w+|memory_order_\w+|atomic_\w+_fence|stdatomic)\b")
C_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
C_INCLUDE = re.compile(r'^#include "([^"]+)"')
C_MACRO = re.compile(r"^#define (\w+)")
# A declaration or definition that the linker sees: in column 0, neither static nor a type nor an assertion.
C_PUBLIC = re.compile(r"^(?!static|typedef|return|_Static_assert|extern \"C\")(?:[a-z]\w*[ *]+)+\**(\w+)\s*[(\[=;]")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One breach of a rule."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Module:
    """A Python file, parsed."""

    path: str
    name: str
    text: str
    tree: ast.Module
    imports: dict[str, int] = field(default_factory=dict)
    """Dotted name → line; `from a import b` stands as both `a` and `a.b`."""

    @property
    def package(self) -> str:
        # A builder lies beside what it builds, but runs before it and is not shipped: a tool.
        return "tools" if self.path.endswith("/_build.py") else self.path.split("/")[0]


def read_modules(root: Path) -> list[Module]:
    modules = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            text = file.read_text()
            module = Module(path, name, text, ast.parse(text, path))
            module.imports.update(imports_of(module))
            modules.append(module)
    return modules


def imports_of(module: Module) -> Iterator[tuple[str, int]]:
    here = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base, node.lineno
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def read_c_files(root: Path) -> dict[str, str]:
    """Path → text without comments (their line ends are kept) of the product's C files."""
    files = sorted(file for package in PRODUCT for file in (root / package / "csrc").rglob("*.[ch]"))
    return {
        file.relative_to(root).as_posix(): C_COMMENT.sub(lambda m: "\n" * m[0].count("\n"), file.read_text())
        for file in files
    }


# --- Rules ------------------------------------------------------------------------------------------------------------


def import_direction(modules: list[Module]) -> Iterator[Finding]:
    for module in modules:
        for name, line in module.imports.items():
            target = name.split(".")[0]
            if target in PACKAGES and target not in PACKAGES[module.package]:
                yield Finding(module.path, line, f"{module.package} may not import {target}")
            if (module.name, name) in STRANGERS:
                yield Finding(module.path, line, f"{module.name} may not know {name}")


def third_party(modules: list[Module]) -> Iterator[Finding]:
    for module in modules:
        if module.package not in PRODUCT:
            continue
        for target, line in {name.split(".")[0]: line for name, line in module.imports.items()}.items():
            if target in PACKAGES or target in sys.stdlib_module_names:
                continue
            homes = THIRD_PARTY.get(target)
            if homes is None:
                yield Finding(module.path, line, f"{target} is not among the packages that the product uses")
            elif not module.path.startswith(tuple(homes)):
                yield Finding(module.path, line, f"{target} may be imported in {' and '.join(sorted(homes))} alone")


def long_python_functions(modules: list[Module]) -> Iterator[Finding]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from too_long(module.path, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)


def long_c_functions(path: str, text: str) -> Iterator[Finding]:
    start = None
    for number, line in enumerate(text.splitlines(), 1):
        if start is None and re.match(r"[A-Za-z]", line) and "(" in line:
            start = number
        if line == "}" and start is not None:
            yield from too_long(path, start, number - start + 1)
        if line.endswith((";", "}")) and not line.startswith(" "):
            start = None


def long_files(root: Path, paths: Iterable[str]) -> Iterator[Finding]:
    for path in paths:
        length = len((root / path).read_text().splitlines())
        if length > FILE_LINES_MAX and path.split("/")[0] in PRODUCT and path not in GENERATED:
            yield Finding(path, 1, f"a file of {length} lines; at most {FILE_LINES_MAX}")


def too_long(path: str, line: int, length: int) -> Iterator[Finding]:
    if length > FUNCTION_LINES_MAX:
        yield Finding(path, line, f"a function of {length} lines; at most {FUNCTION_LINES_MAX}")


def memory_orders(files: dict[str, str]) -> Iterator[Finding]:
    for path, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if (match := MEMORY_ORDER.search(line)) and not path.endswith("/ph_atomic.h"):
                yield Finding(path, number, f"{match[0]}: only ph_atomic.h names memory orders")


def layer_of(path: str) -> str:
    """The folder below pharaohd/csrc/; "" for a file in it."""
    return "/".join(path.removeprefix(CORE).split("/")[:-1])


def c_includes(files: dict[str, str]) -> Iterator[Finding]:
    for path, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if (match := C_INCLUDE.match(line)) is None:
                continue
            if f"libpharaoh/csrc/{match[1]}" in files:
                continue
            if not path.startswith(CORE) or CORE + match[1] not in files:
                yield Finding(path, number, f"{path.split('/')[0]}/csrc may not include {match[1]}")
            elif layer_of(CORE + match[1]) not in LAYERS[layer_of(path)]:
                yield Finding(path, number, f"{layer_of(path)}/ may not include {match[1]}")


def symbols_of(root: Path, path: str, directory: Path) -> tuple[set[str], set[str]]:
    """What the linker finds in a source of the core, and what it looks for elsewhere, of our own."""
    target = directory / (path.replace("/", "_") + ".o")
    includes = [f"-I{root / package / 'csrc'}" for package in PRODUCT]
    command = ["cc", "-std=gnu11", "-w", *includes, "-c", str(root / path), "-o", str(target)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        return set(), set()  # the build says why
    listing = subprocess.run(["nm", str(target)], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-2:] for line in listing.splitlines()]
    ours = [(kind, name) for kind, name in symbols if name.startswith("ph_")]
    return {name for kind, name in ours if kind.isupper() and kind != "U"}, {n for kind, n in ours if kind == "U"}


def c_calls(root: Path, files: dict[str, str]) -> Iterator[Finding]:
    """Of the objects, since a declaration could be repeated instead of included."""
    sources = [path for path in files if path.startswith(CORE) and path.endswith(".c")]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as pool:
        symbols = dict(
            zip(sources, pool.map(lambda path: symbols_of(root, path, Path(directory)), sources), strict=True)
        )
    homes = {name: layer_of(path) for path, (defined, _) in symbols.items() for name in defined}
    for path, (_, wanted) in symbols.items():
        for name in sorted(wanted):
            if name not in homes:
                yield Finding(path, 1, f"{name} is in no file of the core")
            elif homes[name] not in LAYERS[layer_of(path)]:
                yield Finding(path, 1, f"{layer_of(path)}/ may not use {name} of {homes[name]}/")


def c_names(files: dict[str, str]) -> Iterator[Finding]:
    for path, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if (match := C_PUBLIC.match(line)) and not match[1].startswith("ph_"):
                yield Finding(path, number, f"{match[1]}: a public symbol starts with ph_, another is static")
            if path.endswith(".h") and (match := C_MACRO.match(line)) and not match[1].startswith("PH_"):
                yield Finding(path, number, f"{match[1]}: a macro in a header starts with PH_")


def dead_c_files(root: Path, files: dict[str, str]) -> Iterator[Finding]:
    """A source lives when a builder names it, with or without its suffix; a header when something includes it."""
    named_in = [root / "setup.py", *(root / package / "_build.py" for package in PRODUCT)]
    builders = "".join(file.read_text() for file in named_in if file.exists())
    alive = {word.split("/")[-1] for string in re.findall(r'"([^"\n]*)"', builders) for word in string.split()}
    alive |= {
        match[1].split("/")[-1]
        for text in files.values()
        for match in re.finditer(r'^#include "([^"]+)"', text, re.MULTILINE)
    }
    for path in files:
        name = path.split("/")[-1]
        if not {name, name.removesuffix(".c"), f"*{name[-2:]}"} & alive:
            yield Finding(path, 1, "neither built nor included")


def dead_modules(root: Path, modules: list[Module]) -> Iterator[Finding]:
    """A module lives when it is a command, an entry of its package, public to applications, or used by another."""
    project = tomllib.loads((root / "pyproject.toml").read_text()).get("project", {})
    commands = {target.split(":")[0] for target in project.get("scripts", {}).values()}
    for module in modules:
        name = module.path.split("/")[-1]
        public = module.package == "libpharaoh" and not name.startswith("_")
        collected = module.package == "tests" and re.match(r"test_|conftest\.py", name)
        if name in ("__init__.py", "__main__.py", "_build.py") or module.name in commands or public or collected:
            continue
        if 'if __name__ == "__main__":' not in module.text and not any(uses(other, module) for other in modules):
            yield Finding(module.path, 1, "imported by nothing, and no command")


def uses(user: Module, used: Module) -> bool:
    if user is used or (user.package == "tests" and used.package != "tests"):
        return False
    return used.name in user.imports or re.search(rf'["\' ]{re.escape(used.name)}\b', user.text) is not None


def findings(root: Path) -> list[Finding]:
    """Every breach in the tree at `root`, in order of file and line."""
    modules, files = read_modules(root), read_c_files(root)
    found = [
        *import_direction(modules),
        *third_party(modules),
        *long_python_functions(modules),
        *(finding for path, text in files.items() for finding in long_c_functions(path, text)),
        *memory_orders(files),
        *c_includes(files),
        *c_calls(root, files),
        *long_files(root, [*(module.path for module in modules), *files]),
        *c_names(files),
        *dead_c_files(root, files),
        *dead_modules(root, modules),
    ]
    for file in sorted((root / "tests/csrc").glob("*.[ch]")):
        found += long_c_functions(file.relative_to(root).as_posix(), file.read_text())
    return sorted(set(found))


def main() -> int:
    found = findings(ROOT)
    print("\n".join(map(str, found)), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
