"""Makes the files that repeat a fact which stands elsewhere, so that it is written once.

    python -m tools.gen           writes them
    python -m tools.gen --check   exits with 1 and names those that differ from what would be written

| source | generated |
| --- | --- |
| spec/errors.toml | libpharaoh/csrc/ph_errors.h, libpharaoh/errors.py, docs/reference/errors.md |
| libpharaoh/_calls.py | libpharaoh/_methods.py |
| spec/statistics.toml, spec/limits.toml, spec/methods.toml | see gen_core.py |
| SETTINGS of pharaohd/settings.py | docs/reference/settings.md, pharaohd/csrc/service/settings.h |
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools import gen_clients, gen_core
from tools.gen_text import MARK, SpecError, md_table, yes_no

if TYPE_CHECKING:
    from pharaohd.settings import Setting

ROOT = Path(__file__).resolve().parent.parent
SCOPES = {
    "wire": ("RequestError", "the daemon's reply to a request"),
    "client": ("ClientError", "raised by the client library on its own account"),
    "start": ("StartError", "the daemon or one of its workers refuses to serve, and exits with `exit_status`"),
}


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One `[[error]]` of spec/errors.toml."""

    code: int
    name: str
    class_name: str
    scope: str
    retryable: bool
    message: str
    hint: str
    exit_status: int | None


def read_errors(text: str) -> list[ErrorSpec]:
    """The entries of errors.toml in order of code. Raises SpecError for a missing key, a duplicate or a bad scope."""
    errors = []
    for entry in tomllib.loads(text)["error"]:
        keys = {"code", "name", "class", "scope", "retryable", "message", "hint"}
        keys |= {"exit"} if entry.get("scope") == "start" else set()
        if set(entry) != keys or entry["scope"] not in SCOPES:
            raise SpecError(f"{entry.get('name', entry)}: scope or keys are wrong: {sorted(set(entry) ^ keys)}")
        names = {"class": "class_name", "exit": "exit_status"}
        errors.append(ErrorSpec(**{names.get(key, key): value for key, value in ({"exit": None} | entry).items()}))
    unique: list[Callable[[ErrorSpec], object]] = [lambda e: e.code, lambda e: e.name, lambda e: e.class_name]
    for field in unique:
        if len({field(error) for error in errors}) != len(errors):
            raise SpecError("two entries share a code, a name or a class")
    exits = [error.exit_status for error in errors if error.exit_status is not None]
    if len(set(exits)) != len(exits):
        raise SpecError("two entries share an exit status")
    return sorted(errors, key=lambda error: error.code)


# --- C ----------------------------------------------------------------------------------------------------------------


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def errors_header(errors: Sequence[ErrorSpec]) -> str:
    codes = "\n".join(f"    PH_ERR_{e.name} = {e.code}," for e in errors)
    rows = "\n".join(
        f"        {{{e.code}, {c_string(e.name)}, {c_string(e.message)}, {c_string(e.hint)}, "
        f"{int(e.retryable)}, {e.exit_status or 0}}},"
        for e in errors
    )
    return f"""\
/* {MARK.format(source="spec/errors.toml")} */
#ifndef PH_ERRORS_H
#define PH_ERRORS_H

#include <stddef.h>

enum ph_error {{
{codes}
}};

struct ph_error_info {{
    int code;
    const char *name;
    const char *message;
    const char *hint;
    int retryable;
    int exit_status; /* of a process that ends for this reason, or 0 */
}};

/* What is known about a code, or NULL when it is none of ours. */
static inline const struct ph_error_info *ph_error_info(int code) {{
    /* clang-format off */
    static const struct ph_error_info table[] = {{
{rows}
    }};
    /* clang-format on */
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {{
        if (table[i].code == code)
            return &table[i];
    }}
    return NULL;
}}

#endif
"""


# --- Python -----------------------------------------------------------------------------------------------------------

ERRORS_PY_HEAD = '''\
"""Every error that Pharaoh reports, one class each. {mark}

`PharaohError` is the base of all; `RequestError`, `ClientError` and `StartError` tell where an error was found.
`retryable` says whether the same call can succeed later without anything being changed.
"""

from __future__ import annotations


class PharaohError(Exception):
    """Base of every error of Pharaoh.

    The class attributes stand in spec/errors.toml; an error that came over the wire may carry its own message and hint.
    """

    code: int = 0
    name: str = "UNKNOWN"
    retryable: bool = False
    message: str = "unknown error"
    hint: str = ""
    exit_status: int | None = None
    """The exit status of a process that ends for this reason; None unless it is a StartError."""

    def __init__(self, detail: str = "", *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        text = f"{{self.name}}: {{self.message}}"
        text += f": {{self.detail}}" if self.detail else ""
        return text + (f" ({{self.hint}})" if self.hint else "")
'''

ERRORS_PY_TAIL = '''\
by_code: dict[int, type[PharaohError]] = {{
{rows}
}}


def from_wire(code: int, name: str, message: str, retryable: bool, hint: str | None) -> PharaohError:
    """The error for a reply's `[code, name, message, retryable, hint]`.

    A code that this version does not know gives a plain PharaohError that carries the five values.
    """
    known = by_code.get(code)
    if known is None:
        error = PharaohError(hint=hint or None)
        error.code, error.name, error.message, error.retryable = code, name, message, retryable
        return error
    if message.startswith(known.message):
        return known(message.removeprefix(known.message).removeprefix(":").strip(), hint=hint or None)
    error = known(hint=hint or None)
    error.message = message
    return error
'''


def py_string(text: str) -> str:
    """A literal with the quotes that ruff would choose."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def py_assignment(name: str, text: str) -> str:
    line = f"    {name} = {py_string(text)}"
    if len(line) <= 120:
        return line
    parts = textwrap.wrap(text, 108, drop_whitespace=False, break_long_words=False)
    return "\n".join([f"    {name} = (", *(f"        {py_string(part)}" for part in parts), "    )"])


def py_docstring(text: str) -> str:
    lines = textwrap.wrap(text, 110, initial_indent='    """', subsequent_indent="    ")
    return "\n".join(lines) + ('"""' if len(lines) == 1 else '\n    """')


def error_class(error: ErrorSpec) -> str:
    lines = [
        f"class {error.class_name}({SCOPES[error.scope][0]}):",
        py_docstring(f"{error.name} ({error.code}): {error.message}."),
        "",
        f"    code = {error.code}",
        f"    name = {py_string(error.name)}",
        f"    retryable = {error.retryable}",
        py_assignment("message", error.message),
        py_assignment("hint", error.hint),
    ]
    if error.exit_status is not None:
        lines.append(f"    exit_status = {error.exit_status}")
    return "\n".join(lines) + "\n"


def errors_module(errors: Sequence[ErrorSpec]) -> str:
    bases = [f'class {name}(PharaohError):\n    """{what[0].upper()}{what[1:]}."""\n' for name, what in SCOPES.values()]
    rows = "\n".join(f"    {error.code}: {error.class_name}," for error in errors)
    parts = [
        ERRORS_PY_HEAD.format(mark=MARK.format(source="spec/errors.toml")),
        *bases,
        *(error_class(error) for error in errors),
        ERRORS_PY_TAIL.format(rows=rows),
    ]
    return "\n\n".join(parts)


# --- Documents --------------------------------------------------------------------------------------------------------

SETTINGS_INTRO = """
`pharaohd --config FILE` reads TOML: a table per section, a line per key. An unknown key is an error. The environment
overrides the file: section `ring`, key `max_age_ms` is `PHARAOHD_RING_MAX_AGE_MS`. *Reload*: whether SIGHUP or
`pharaohctl reload` brings a changed value into force; the others need a restart.
"""


def errors_page(errors: Sequence[ErrorSpec]) -> str:
    intro = (
        f"<!-- {MARK.format(source='spec/errors.toml')} -->\n# Errors\n\n"
        "Codes are append-only: a code is never reused and never changes its meaning. A reply carries an error as\n"
        "`[code, name, message, retryable, hint]`. *Retry*: the same request can succeed later without any change.\n"
    )
    parts = [intro]
    for scope, (base, what) in SCOPES.items():
        head = ["code", "name", "Python", "retry", "meaning", "remedy"] + (["exit"] if scope == "start" else [])
        rows = [
            [str(e.code), f"`{e.name}`", f"`{e.class_name}`", yes_no(e.retryable), e.message, e.hint]
            + ([str(e.exit_status)] if scope == "start" else [])
            for e in errors
            if e.scope == scope
        ]
        parts.append(f"\n## `{base}`: {what}\n\n{md_table(head, rows)}")
    return "".join(parts)


def default_text(default: str | int) -> str:
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def settings_page(settings: Sequence[Setting]) -> str:
    parts = [
        f"<!-- {MARK.format(source='pharaohd/settings.py')} -->\n# Settings\n",
        SETTINGS_INTRO,
    ]
    for section in dict.fromkeys(one.section for one in settings):
        head = ["key", "type", "default", "unit", "permitted", "reload", "meaning"]
        rows = [
            [f"`{s.key}`", s.type, default_text(s.default), s.unit, s.permitted, yes_no(s.reloadable), s.prose]
            for s in settings
            if s.section == section
        ]
        parts.append(f"\n## [{section}]\n\n{md_table(head, rows)}")
    return "".join(parts)


def settings_header(settings: Sequence[Setting]) -> str:
    words = "".join(f"    uint64_t {one.core_name};{unit_comment(one)}\n" for one in settings if one.core)
    mark = MARK.format(source="pharaohd/settings.py")
    return (
        f"/* The settings that the C core is told. {mark} */\n#ifndef PH_SETTINGS_H\n#define PH_SETTINGS_H\n\n"
        f"#include <stdint.h>\n\n/* clang-format off */\nstruct ph_settings {{\n{words}}};\n"
        "/* clang-format on */\n\n#endif\n"
    )


def unit_comment(one: Setting) -> str:
    return " /* may change while it runs */" if one.reloadable else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.gen", description="Writes the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args(argv).check
    stale = [path for path, text in generated(ROOT) if update(ROOT / path, text, check)]
    for path in stale:
        print(f"{path}: out of date; run `python -m tools.gen`" if check else f"wrote {path}")
    return 1 if check and stale else 0


def generated(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of every generated file, one after the other."""
    errors = read_errors((root / "spec/errors.toml").read_text())
    yield "libpharaoh/csrc/ph_errors.h", errors_header(errors)
    yield "libpharaoh/errors.py", errors_module(errors)
    yield "docs/reference/errors.md", errors_page(errors)
    yield from gen_core.generated(root)
    # Only now: the settings import what was just written (and the C modules: `make setup`).
    from libpharaoh import _calls
    from pharaohd.settings import SETTINGS

    yield "libpharaoh/_methods.py", gen_clients.methods_module(_calls)
    yield "docs/reference/settings.md", settings_page(SETTINGS)
    yield "pharaohd/csrc/service/settings.h", settings_header(SETTINGS)


def update(path: Path, text: str, check: bool) -> bool:
    """Whether the file differed from `text`; writes it unless `check`."""
    if path.exists() and path.read_text() == text:
        return False
    if not check:
        path.write_text(text)
    return True


if __name__ == "__main__":
    sys.exit(main())
