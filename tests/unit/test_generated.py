"""The committed generated files are what the generator would write; and what it writes is right."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libpharaoh import errors
from tools import gen, gen_core, gen_text

ROOT = gen.ROOT
SPEC: list[dict[str, Any]] = tomllib.loads((ROOT / "spec/errors.toml").read_text())["error"]
ENTRY = """\
[[error]]
code = 4001
name = "BAD"
class = "BadError"
scope = "wire"
retryable = false
message = "bad"
hint = "do not"
"""


def test_no_drift() -> None:
    assert gen.main(["--check"]) == 0


def test_check_fails_on_drift_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [*dict(gen.generated(ROOT)), *(str(path.relative_to(ROOT)) for path in (ROOT / "spec").glob("*.toml"))]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    monkeypatch.setattr(gen, "ROOT", tmp_path)
    assert gen.main(["--check"]) == 0
    page = tmp_path / "docs/reference/errors.md"
    page.write_text(page.read_text().replace("no such method", "no such thing"))
    assert gen.main(["--check"]) == 1
    assert "no such thing" in page.read_text()
    assert gen.main([]) == 0
    assert gen.main(["--check"]) == 0


@pytest.mark.parametrize(
    "text",
    [
        ENTRY.replace('hint = "do not"\n', ""),
        ENTRY + "exit = 80\n",
        ENTRY.replace("wire", "wired"),
        ENTRY.replace("wire", "start"),
        ENTRY + ENTRY,
        ENTRY + ENTRY.replace("4001", "4002"),
        ENTRY + ENTRY.replace("4001", "4002").replace('"BAD"', '"WORSE"'),
    ],
)
def test_a_wrong_spec_is_refused(text: str) -> None:
    with pytest.raises(gen_text.SpecError):
        gen.read_errors(text)


@pytest.mark.parametrize("entry", SPEC, ids=[entry["name"] for entry in SPEC])
def test_error_classes(entry: dict[str, Any]) -> None:
    error_class = errors.by_code[entry["code"]]
    bases = {"wire": errors.RequestError, "client": errors.ClientError, "start": errors.StartError}
    assert error_class.__name__ == entry["class"]
    assert issubclass(error_class, bases[entry["scope"]])
    assert issubclass(error_class, errors.PharaohError)
    error = error_class("the detail")
    facts = (error.code, error.name, error.retryable, error.message, error.hint, error.exit_status)
    assert facts == tuple(entry.get(key) for key in ("code", "name", "retryable", "message", "hint", "exit"))
    assert str(error) == f"{entry['name']}: {entry['message']}: the detail ({entry['hint']})"


def test_from_wire_known() -> None:
    error = errors.from_wire(
        4003, "OUT_OF_RANGE", "a number is outside the permitted range: n is 0", False, "1 to 8192"
    )
    assert type(error) is errors.OutOfRangeError
    assert error.detail == "n is 0"
    assert str(error) == "OUT_OF_RANGE: a number is outside the permitted range: n is 0 (1 to 8192)"
    reworded = errors.from_wire(4003, "OUT_OF_RANGE", "a newer daemon's words", False, None)
    assert str(reworded) == f"OUT_OF_RANGE: a newer daemon's words ({errors.OutOfRangeError.hint})"


def test_from_wire_unknown_survives_pickling() -> None:
    error = errors.from_wire(4999, "NEW", "not known here", True, None)
    assert type(error) is errors.PharaohError
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (one.code, one.name, one.message, one.retryable, one.hint) == (4999, "NEW", "not known here", True, "")
        assert str(one) == "NEW: not known here"


def test_c_table(tmp_path: Path) -> None:
    """Compiled and printed, it says the same as the specification."""
    program = tmp_path / "print.c"
    program.write_text(
        '#include "ph_errors.h"\n#include <stdio.h>\n'
        "int main(void) { for (int code = 0; code < 10000; code++) {\n"
        "    const struct ph_error_info *e = ph_error_info(code);\n"
        '    if (e) printf("%d|%s|%s|%s|%d|%d\\n", e->code, e->name, e->message,\n'
        "        e->hint, e->retryable, e->exit_status);\n"
        "} return ph_error_info(PH_ERR_BAD_REQUEST) == NULL; }\n"
    )
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/libpharaoh/csrc"]
    subprocess.run(["cc", *flags, str(program), "-o", str(tmp_path / "print")], check=True)
    printed = subprocess.run([str(tmp_path / "print")], check=True, capture_output=True, text=True).stdout
    expected = [
        f"{e['code']}|{e['name']}|{e['message']}|{e['hint']}|{int(e['retryable'])}|{e.get('exit', 0)}" for e in SPEC
    ]
    assert printed.splitlines() == sorted(expected)


def test_settings_page_has_every_setting() -> None:
    from pharaohd.settings import SETTINGS

    page = (ROOT / "docs/reference/settings.md").read_text()
    for setting in SETTINGS:
        section = page.split(f"## [{setting.section}]\n")[1].split("\n## ")[0]
        assert f"| `{setting.key}` |" in section
        assert setting.prose.replace("|", "\\|") in section


@pytest.mark.parametrize(
    ("read", "text", "named"),
    [
        (
            gen_core.read_statistics,
            '[[statistic]]\nname = "a"\nkind = "sum"\nunit = ""\nmeaning = "b"',
            "a kind is one",
        ),
        (gen_core.read_statistics, '[[statistic]]\nname = "a"\nkind = "gauge"\nunit = ""', "keys are wrong"),
        (gen_core.read_limits, 2 * '[[limit]]\nname="a"\nmacro="A"\nvalue=1\nwhat="b"\nbeyond="c"\n', "share a name"),
        (gen_core.read_methods, '[[method]]\nname="@a"\nfunction="f"\nwho="application"\nwhat="b"', "begin with @"),
    ],
)
def test_a_wrong_entry_is_refused(read: Callable[[str], object], text: str, named: str) -> None:
    with pytest.raises(gen_text.SpecError, match=named):
        read(text)


def test_a_slot_that_is_full_is_refused() -> None:
    known = gen_core.read_statistics((ROOT / "spec/statistics.toml").read_text())
    more = [{"name": f"more_{n}", "kind": "gauge", "unit": "", "meaning": "x"} for n in range(64 - len(known))]
    with pytest.raises(gen_text.SpecError, match="raise the page's version"):
        gen_core.stats_header([*known, *more])
