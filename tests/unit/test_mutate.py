"""tools/mutate.py on a tree of a few lines, which holds one mutant for each verdict."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import mutate

ROOT = Path(__file__).resolve().parents[2]

BUILD = """\
from cffi import FFI
ffi = FFI()
ffi.cdef("int twice(int n);")
ffi.set_source("pharaohd._core", '#include "twice.h"', include_dirs=["pharaohd/csrc"], extra_compile_args=["-O3"])
"""
FILES = {
    "setup.py": "from setuptools import setup\nsetup(cffi_modules=['pharaohd/_build.py:ffi'], packages=[])\n",
    "pharaohd/__init__.py": "",
    "pharaohd/_build.py": BUILD,
    "pharaohd/csrc/twice.h": "static inline int twice(int n) { return n + n; }\n",
    "pharaohd/pure.py": "LIMIT = 5\n\ndef small(n: int) -> bool:\n    return n < LIMIT\n",
    "tests/unit/test_toy.py": """\
import pytest
from pharaohd import _core, pure

def test_small():
    assert pure.small(4) and not pure.small(6)

def test_twice():
    assert _core.lib.twice(3) == 6

@pytest.mark.skip
def test_skipped():
    pass
""",
    "tests/csrc/test_toy.c": """\
#include "check.h"
#include "twice.h"
static void test_twice(void) { CHECK_EQ_U64(twice(3), 6); }
int main(void) { RUN(test_twice); return check_report(); }
""",
}


def mutant(name: str, file: str, find: str, replace: str, test: str) -> str:
    entry = {"name": name, "fault": "F1", "file": file, "find": find, "replace": replace, "test": test}
    return "[[mutant]]\n" + "".join(f"{key} = '{value}'\n" for key, value in entry.items())


HEADER, PURE = "pharaohd/csrc/twice.h", "pharaohd/pure.py"
TEST_SMALL, TEST_TWICE = "tests/unit/test_toy.py::test_small", "tests/unit/test_toy.py::test_twice"
MUTANTS = {
    "inverted": (PURE, "n < LIMIT", "n > LIMIT", TEST_SMALL, "caught"),
    "boundary untested": (PURE, "n < LIMIT", "n <= LIMIT", TEST_SMALL, "SURVIVED"),
    "text gone": (PURE, "n <<< LIMIT", "1", TEST_SMALL, "`find` occurs 0 times"),
    "text ambiguous": (PURE, "LIMIT", "7", TEST_SMALL, "`find` occurs 2 times"),
    "in the module": (HEADER, "n + n", "n * n", TEST_TWICE, "caught"),
    "not C": (HEADER, "n + n", "n +", TEST_TWICE, "does not build"),
    "restored": (PURE, "n < LIMIT", "n < LIMIT  # the same", TEST_TWICE, "SURVIVED"),
    "in a C test": (HEADER, "n + n", "n * n", "csrc:test_toy", "caught"),
    "not C in a C test": (HEADER, "n + n", "n +", "csrc:test_toy", "does not build"),
    "test skipped": (PURE, "n < LIMIT", "1", "tests/unit/test_toy.py::test_skipped", "unmutated: its test is skipped"),
    "no such test": (PURE, "n < LIMIT", "1", "tests/unit/test_toy.py::test_none", "unmutated: its test does not run"),
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("tests/csrc/Makefile", "tests/csrc/check.h", "libpharaoh/csrc/ph_atomic.h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = "".join(mutant(name, *facts[:4]) for name, facts in MUTANTS.items())
    (tmp_path / "tests/mutants.toml").write_text(text)
    return tmp_path


def test_verdicts(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in toy.rglob("*") if file.is_file()}
    assert mutate.main([], toy) == 1
    output = capsys.readouterr().out
    lines = {name: next(line for line in output.splitlines() if line[5:].startswith(name + " ")) for name in MUTANTS}
    for name, facts in MUTANTS.items():
        assert facts[4] in lines[name]
    assert "3 of 11 mutants caught" in output
    assert before == {file: file.read_bytes() for file in toy.rglob("*") if file.is_file()}, "the tree itself changed"


def test_the_check_names_each_that_does_not_fit(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate.main(["--check", "inverted"], toy) == 0
    assert capsys.readouterr().out == ""
    mutants = toy / "tests/mutants.toml"
    mutants.write_text(mutants.read_text().replace("::test_small", "::test_renamed", 1))
    (toy / "pharaohd/pure.py").write_text("LIMIT = 5\n")
    assert mutate.main(["--check"], toy) == 1
    output = capsys.readouterr().out
    assert "`find` occurs 0 times in pharaohd/pure.py" in output
    assert "there is no tests/unit/test_toy.py::test_renamed" in output


def test_shards_are_all_of_them() -> None:
    known = mutate.read_mutants(ROOT / "tests/mutants.toml", [])
    shards = [mutate.shard_of(known, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(m.name for shard in shards for m in shard) == sorted(m.name for m in known)
    for wrong in ("0/3", "4/3"):
        with pytest.raises(ValueError, match="--shard 1/3 to 3/3"):
            mutate.shard_of(known, wrong)


def test_success_needs_a_mutant_and_all_caught(toy: Path) -> None:
    assert mutate.main(["inverted"], toy) == 0
    assert mutate.main(["no mutant of this name"], toy) == 1
