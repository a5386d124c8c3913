"""Proves that tests can fail: breaks the code in one place, and the named test must notice.

    python -m tools.mutate [--shard I/N] [PART OF A NAME]...
    python -m tools.mutate --check       # only whether each mutant still fits its file and its test; `make check` asks

tests/mutants.toml lists the mutants:

    [[mutant]]
    name = "ceiling not awaited"
    fault = "F1"                                # of docs and tests
    file = "pharaohd/csrc/issuer.c"
    find = "tick < ceiling"                     # must occur exactly once
    replace = "1"
    test = "tests/unit/test_issuer.py::test_x"  # or "csrc:test_issuer", "csrc-asan:…", "csrc-tsan:…"

All happens in a copy of the tree. Every test first has to pass there on the code as it is; then, for one mutant after
the other, the C modules that hold the file are built again and the test has to fail. The exit status is 1 when a
mutant survives, does not build, or cannot be judged (its test is skipped: some need root).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (
    ".git", ".venv", "build", "dist", "var", "__pycache__", "*.so", "*.o", "*.egg-info", ".*_cache", ".hypothesis",
)  # fmt: skip
WATCHDOG_S = 300.0
BUILD = ("setup.py", "--quiet", "build_ext", "--inplace", "--force")

CAUGHT = "caught"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One `[[mutant]]`."""

    name: str
    fault: str
    file: str
    find: str
    replace: str
    test: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did. `status` is None when the watchdog ended it."""

    status: int | None
    output: str


class BuildError(Exception):
    """The tree does not compile; the text is the compiler's."""


def read_mutants(path: Path, parts: Sequence[str]) -> list[Mutant]:
    """Those whose name or fault holds one of `parts` (all, without parts)."""
    mutants = [Mutant(**entry) for entry in tomllib.loads(path.read_text()).get("mutant", [])]
    return [m for m in mutants if not parts or any(part in m.name or part == m.fault for part in parts)]


def shard_of(mutants: Sequence[Mutant], shard: str) -> list[Mutant]:
    """One of several parts: shard "2/4" is the second of four. Raises ValueError."""
    number, count = map(int, shard.split("/"))
    if not 1 <= number <= count:
        raise ValueError(f"--shard 1/{count} to {count}/{count}, not {shard}")
    return list(mutants[number - 1 :: count])


def occurrences(tree: Path, mutant: Mutant) -> int:
    return (tree / mutant.file).read_text().count(mutant.find) if (tree / mutant.file).exists() else 0


def misfits(tree: Path, mutants: Sequence[Mutant]) -> Iterator[str]:
    """What a change has left behind: a place that is not there any more, a test that has another name."""
    for mutant in mutants:
        if (count := occurrences(tree, mutant)) != 1:
            yield f"{mutant.name}: `find` occurs {count} times in {mutant.file}"
        kind, _, program = mutant.test.partition(":")
        if kind.startswith("csrc"):
            file, words = tree / f"tests/csrc/{program}.c", "int main("
        else:
            name, _, test = mutant.test.partition("::")
            file, words = tree / name, f"def {test.partition('[')[0]}(" if test else ""
        if not file.exists() or words not in file.read_text():
            yield f"{mutant.name}: there is no {mutant.test}"


def run(tree: Path, *command: str) -> Outcome:
    """Runs a command in the tree, with the tree's own packages before all others."""
    environ = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as log:  # a file: a pipe would stay open in a daemon that a test leaves behind
        process = subprocess.Popen(command, cwd=tree, env=environ, stdout=log, stderr=log, start_new_session=True)
        status: int | None
        try:
            status = process.wait(WATCHDOG_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        log.seek(0)
        return Outcome(status, log.read())


def build_modules(tree: Path) -> None:
    outcome = run(tree, sys.executable, *BUILD)
    if outcome.status != 0:
        raise BuildError(outcome.output)


def is_built(file: str) -> bool:
    """Whether the C modules are made from this file. A C test compiles what it needs by itself."""
    return file.endswith((".c", ".h", "_build.py")) and not file.startswith("tests/")


def judge(tree: Path, test: str) -> str:
    """Runs a test: "passed", "failed", or why neither can be said. Raises BuildError for a C test."""
    kind, _, program = test.partition(":")
    if kind.startswith("csrc"):
        flavour = kind.removeprefix("csrc").removeprefix("-") or "plain"
        built = run(tree, "make", "-C", "tests/csrc", f"build-{flavour}", f"TESTS={program}")
        if built.status != 0:
            raise BuildError(built.output)
        return "passed" if run(tree, f"build/csrc/{flavour}/{program}").status == 0 else "failed"
    outcome = run(tree, sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test)
    if outcome.status == 0:
        return "passed" if re.search(r"\d+ passed", outcome.output) else "its test is skipped"
    if outcome.status in (1, None) or outcome.status < 0:
        return "failed"
    return f"its test does not run (pytest's status {outcome.status})"


@contextmanager
def mutated(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The tree with the mutant in it, its C modules built; afterwards as it was."""
    file = tree / mutant.file
    text = file.read_text()
    saved = {module: module.read_bytes() for module in tree.glob("*/_*.so")}
    try:
        file.write_text(text.replace(mutant.find, mutant.replace))
        if is_built(mutant.file) and not mutant.test.startswith("csrc"):
            build_modules(tree)
        yield
    finally:
        file.write_text(text)
        for module, content in saved.items():
            module.unlink(missing_ok=True)  # a process that still maps it keeps its own
            module.write_bytes(content)


def verdict(tree: Path, mutant: Mutant, unmutated: str) -> str:
    if (count := occurrences(tree, mutant)) != 1:
        return f"`find` occurs {count} times"
    if unmutated != "passed":
        return f"unmutated: {unmutated}"
    try:
        with mutated(tree, mutant):
            return {"failed": CAUGHT, "passed": "SURVIVED"}.get(answer := judge(tree, mutant.test), answer)
    except BuildError as error:
        return "does not build: " + next((line for line in str(error).splitlines() if "error" in line), "?")


def unmutated_verdict(tree: Path, test: str) -> str:
    try:
        return judge(tree, test)
    except BuildError as error:
        return f"does not build: {str(error)[-500:]}"


def copy_tree(root: Path, tree: Path) -> None:
    """Copies the sources and builds the C modules there."""
    shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    build_modules(tree)


def check(root: Path, mutants: Sequence[Mutant]) -> int:
    found = list(misfits(root, mutants))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutate")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    parser.add_argument("parts", nargs="*", metavar="PART OF A NAME")
    options = parser.parse_args(argv)
    mutants = shard_of(read_mutants(root / "tests/mutants.toml", options.parts), options.shard)
    if not mutants:
        print("no such mutant")
        return 1
    if options.check:
        return check(root, mutants)
    results: list[tuple[Mutant, str]] = []
    with tempfile.TemporaryDirectory(prefix="mut") as directory:
        tree = Path(directory) / "t"  # short: sockets have paths of at most 107 bytes
        copy_tree(root, tree)
        unmutated: dict[str, str] = {}
        for mutant in mutants:
            if mutant.test not in unmutated:
                unmutated[mutant.test] = unmutated_verdict(tree, mutant.test)
            results.append((mutant, verdict(tree, mutant, unmutated[mutant.test])))
            print(table_line(*results[-1]), flush=True)
    caught = sum(answer == CAUGHT for _, answer in results)
    print(f"{caught} of {len(results)} mutants caught")
    return 0 if caught == len(results) else 1


def table_line(mutant: Mutant, answer: str) -> str:
    return f"{mutant.fault:<4} {mutant.name:<45} {answer:<10} {mutant.test}"


if __name__ == "__main__":
    sys.exit(main())
