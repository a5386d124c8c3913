"""The project keeps the house rules, and tools/tidy.py notices each breach."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import tidy

LONG_PY = "def long() -> None:\n" + "    pass\n" * 70
LONG_C = "int ph_long(int a,\n            int b) {\n" + "    a++;\n" * 68 + "}\n"

# A tree that keeps all rules.
GOOD = {
    "pyproject.toml": '[project]\nscripts = {pharaohd = "pharaohd.cli:main"}\n',
    "libpharaoh/__init__.py": "from libpharaoh import _framing\n",
    "libpharaoh/_build.py": 'from cffi import FFI\nSOURCES = ["csrc/ph_ring.c"]\n',
    "libpharaoh/_framing.py": "import msgpack\n" + LONG_PY.replace("    pass\n", "", 1),
    "libpharaoh/testing.py": "import os\n",
    "libpharaoh/csrc/ph_ring.c": '#include "ph_ring.h"\n\nstatic int count;\n' + LONG_C.replace("    a++;\n", "", 1),
    "libpharaoh/csrc/ph_ring.h": '#include "ph_atomic.h"\n#define PH_A 1\nextern int ph_a;\n/* __ATOMIC_ACQUIRE */\n',
    "libpharaoh/csrc/ph_atomic.h": "static inline int ph_x(int *w) { return __atomic_load_n(w, __ATOMIC_RELAXED); }\n",
    "pharaohd/_build.py": 'NAMES = "worker a b"\n',
    "pharaohd/cli.py": "import click\nfrom . import worker\nfrom libpharaoh import testing\n",
    "pharaohd/ctl/__init__.py": "import click\n",
    "pharaohd/worker.py": "import pharaohd.supervisor_not\n",
    "pharaohd/csrc/worker.c": '#include "ph_ring.h"\n',
    "pharaohd/csrc/base/a.h": "int ph_base(void);\n",
    "pharaohd/csrc/base/a.c": '#include "base/a.h"\n\nint ph_base(void) { return 1; }\n',
    "pharaohd/csrc/engine/b.h": "int ph_engine(void);\n",
    "pharaohd/csrc/engine/b.c": '#include "engine/b.h"\n#include "base/a.h"\nint ph_engine(void) { return ph_base(); }',
    "tools/one.py": 'if __name__ == "__main__":\n    print()\n',
    "tests/unit/test_a.py": "from tests import helper\nimport msgpack\nfrom pharaohd import worker\n",
    "tests/helper.py": "",
    "tests/csrc/test_a.c": "int main(void) { return 0; }\n",
}

# What breaks a rule: file, what is put at its end, line and text of the finding.
BAD = [
    ("libpharaoh/testing.py", "import pharaohd\n", 2, "libpharaoh may not import pharaohd"),
    ("libpharaoh/testing.py", "def f():\n    from tests import helper\n", 3, "libpharaoh may not import tests"),
    ("pharaohd/cli.py", "import bench.plot\n", 4, "pharaohd may not import bench"),
    ("pharaohd/worker.py", "from . import supervisor\n", 2, "pharaohd.worker may not know pharaohd.supervisor"),
    ("pharaohd/worker.py", "import msgpack\n", 2, "msgpack may be imported in libpharaoh/_framing.py alone"),
    ("pharaohd/worker.py", "import click\n", 2, "click may be imported in pharaohd/cli.py and pharaohd/ctl/ alone"),
    ("pharaohd/worker.py", "import requests.api\n", 2, "requests is not among the packages"),
    ("libpharaoh/testing.py", LONG_PY, 2, "a function of 71 lines"),
    ("libpharaoh/csrc/ph_ring.c", LONG_C, 74, "a function of 71 lines"),
    ("tests/csrc/test_a.c", LONG_C, 2, "a function of 71 lines"),
    ("libpharaoh/csrc/ph_ring.c", '#include "worker.h"\n', 74, "libpharaoh/csrc may not include worker.h"),
    ("pharaohd/csrc/worker.c", '#include "check.h"\n', 2, "pharaohd/csrc may not include check.h"),
    (
        "pharaohd/csrc/worker.c",
        "\nstatic int f(int *a) {\n    return __atomic_load_n(a, 0);\n}\n",
        4,
        "__atomic_load_n: only ph_atomic.h",
    ),
    ("pharaohd/csrc/base/a.c", '#include "engine/b.h"\n', 4, "base/ may not include engine/b.h"),
    (
        "pharaohd/csrc/base/a.c",
        "int ph_engine(void);\nint ph_up(void) { return ph_engine(); }\n",
        1,
        "base/ may not use",
    ),
    ("pharaohd/csrc/base/a.c", "int ph_x(void);\nint ph_up(void) { return ph_x(); }\n", 1, "ph_x is in no file"),
    ("libpharaoh/testing.py", "a = 1\n" * 500, 1, "a file of 501 lines"),
    ("pharaohd/csrc/worker.c", "void serve(void) {}\n", 2, "serve: a public symbol"),
    ("pharaohd/csrc/worker.c", "struct ph_x *serve(void) {}\n", 2, "serve: a public symbol"),
    ("pharaohd/csrc/worker.c", "const char *names[] = {0};\n", 2, "names: a public symbol"),
    ("pharaohd/csrc/worker.c", "unsigned long total;\n", 2, "total: a public symbol"),
    ("libpharaoh/csrc/ph_ring.h", "#define SLOTS 4\n", 5, "SLOTS: a macro in a header"),
    ("pharaohd/csrc/forgotten.c", "static int a;\n", 1, "neither built nor included"),
    ("pharaohd/csrc/forgotten.h", "#define PH_B 1\n", 1, "neither built nor included"),
    ("pharaohd/forgotten.py", "", 1, "imported by nothing, and no command"),
    ("libpharaoh/_forgotten.py", "", 1, "imported by nothing, and no command"),
    ("tests/forgotten.py", "", 1, "imported by nothing, and no command"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_project_is_tidy() -> None:
    assert [str(finding) for finding in tidy.findings(tidy.ROOT)] == []


def test_a_good_tree_passes(tree: Path) -> None:
    assert tidy.findings(tree) == []


@pytest.mark.parametrize(("file", "added", "line", "text"), BAD, ids=[f"{bad[0]}: {bad[3]}" for bad in BAD])
def test_a_breach_is_named(tree: Path, file: str, added: str, line: int, text: str) -> None:
    path = tree / file
    path.write_text((path.read_text() if path.exists() else "") + added)
    found = [str(finding) for finding in tidy.findings(tree)]
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{line}: {text}")


def test_only_a_test_uses_it(tree: Path) -> None:
    """A module that nothing but its own test imports is dead."""
    (tree / "pharaohd/unused.py").write_text("")
    (tree / "tests/unit/test_unused.py").write_text("import pharaohd.unused\n")
    assert [finding.path for finding in tidy.findings(tree)] == ["pharaohd/unused.py"]
