"""What C, Python and the documents repeat of spec/statistics.toml, spec/limits.toml and spec/methods.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gen_text import MARK, SpecError, check_entries, md_table, yes_no

Entry = Mapping[str, Any]
WORD_BYTES = 8
LINE_BYTES = 64
SLOT_BYTES = 512
SUPERVISED = "heartbeat_ns"
"""The last of a slot's first cache line, which is the supervisor's."""
KINDS = ("counter", "gauge", "fact")
AUDIENCES = ("application", "private")


def read_entries(text: str, key: str, needed: set[str], permitted: set[str], unique: Sequence[str]) -> list[Entry]:
    entries: list[Entry] = tomllib.loads(text)[key]
    check_entries(entries, needed, permitted, unique)
    return entries


def read_statistics(text: str) -> list[Entry]:
    """Raises SpecError."""
    found = read_entries(text, "statistic", {"name", "kind", "unit", "meaning"}, {"page_only"}, ["name"])
    for entry in found:
        if entry["kind"] not in KINDS:
            raise SpecError(f"{entry['name']}: a kind is one of {', '.join(KINDS)}")
    return found


def read_limits(text: str) -> list[Entry]:
    """Raises SpecError."""
    return read_entries(text, "limit", {"name", "macro", "value", "what", "beyond"}, {"hello"}, ["name", "macro"])


def read_methods(text: str) -> list[Entry]:
    """Raises SpecError."""
    found = read_entries(text, "method", {"name", "function", "who", "what"}, set(), ["name", "function"])
    for entry in found:
        if entry["who"] not in AUDIENCES or (entry["who"] == "private") != entry["name"].startswith("@"):
            raise SpecError(f"{entry['name']}: who is {' or '.join(AUDIENCES)}, and private ones begin with @")
    return found


def x_macro(name: str, rows: Sequence[str]) -> str:
    """A macro that applies another one to each row."""
    lines = [f"#define {name}(X)", *(f"    X({row})" for row in rows)]
    return " \\\n".join(lines) + "\n"


def header(source: str, guard: str, about: str, body: str) -> str:
    return (
        f"/* {about} {MARK.format(source=source)} */\n#ifndef {guard}\n#define {guard}\n\n"
        f"/* clang-format off */\n{body}/* clang-format on */\n\n#endif\n"
    )


# --- statistics


def stats_header(statistics: Sequence[Entry]) -> str:
    names = [entry["name"] for entry in statistics]
    first = names.index(SUPERVISED) + 1
    words = [f"    uint64_t {name};\n" for name in names]
    words.insert(first, f"    uint8_t pad0[{LINE_BYTES - first * WORD_BYTES}];\n")
    left = SLOT_BYTES - LINE_BYTES - (len(names) - first) * WORD_BYTES
    if left <= 0:
        raise SpecError(f"a slot has {SLOT_BYTES} bytes: make it larger, and raise the page's version")
    on_wire = [name for name, entry in zip(names, statistics, strict=True) if not entry.get("page_only", False)]
    body = (
        f"struct ph_stats_slot {{\n{''.join(words)}    uint8_t pad1[{left}];\n}};\n\n"
        "/* Those that the reply to `stats` tells. */\n" + x_macro("PH_STATS_ON_WIRE", on_wire)
    )
    about = "One worker's slot of the statistics page; docs/reference/statistics.md says what each word means."
    return header("spec/statistics.toml", "PH_STATS_SLOT_H", about, body)


def statistics_module(statistics: Sequence[Entry]) -> str:
    fields = "".join(f'    {e["name"]}: int\n    """{sentence(e)}"""\n' for e in statistics)
    mark = MARK.format(source="spec/statistics.toml")
    return (
        f'"""A worker\'s figures. {mark}"""\n\nfrom __future__ import annotations\n\n'
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True, slots=True)\nclass Statistics:\n"
        f'    """One coordinator\'s slot of the statistics page."""\n\n{fields}'
    )


def sentence(entry: Entry) -> str:
    unit = f" [{entry['unit']}]" if entry["unit"] else ""
    return f"{entry['meaning'][0].upper()}{entry['meaning'][1:]}.{unit}"


def statistics_page(statistics: Sequence[Entry]) -> str:
    rows = [
        [f"`{e['name']}`", e["kind"], e["unit"], yes_no(not e.get("page_only", False)), e["meaning"]]
        for e in statistics
    ]
    return (
        f"<!-- {MARK.format(source='spec/statistics.toml')} -->\n# Statistics\n\n"
        "Each worker's, in shared memory, where `pharaohctl workers -o json` reads them even while the worker hangs.\n"
        "Most of them are in the reply to [`stats`](protocol.md#stats). A *counter* only grows while the worker's\n"
        "process lives; a *gauge* goes up and down. Later versions may add names.\n\n"
        + md_table(["name", "kind", "unit", "in `stats`", "meaning"], rows)
    )


# --- limits


def limits_header(limits: Sequence[Entry]) -> str:
    macros = "".join(f"#define {limit['macro']} {limit['value']}\n" for limit in limits)
    hello = [f"{limit['name']}, {limit['macro']}" for limit in limits if limit.get("hello", False)]
    count = f"#define PH_HELLO_LIMITS_COUNT {len(hello)}\n"
    body = macros + "\n/* Those that the reply to `hello` tells: name and value. */\n" + count
    body += x_macro("PH_HELLO_LIMITS", hello)
    body += (
        "\n/* A limit in a message. */\n#define PH_TEXT_OF(limit) #limit\n#define PH_TEXT(limit) PH_TEXT_OF(limit)\n"
    )
    return header("spec/limits.toml", "PH_LIMITS_H", "Limits of the wire.", body)


def limits_module(limits: Sequence[Entry]) -> str:
    constants = "".join(
        f'{e["name"].upper()} = {e["value"]:_}\n"""{e["what"][0].upper()}{e["what"][1:]}."""\n' for e in limits
    )
    hello = "".join(f'    "{e["name"]}": {e["name"].upper()},\n' for e in limits if e.get("hello", False))
    mark = MARK.format(source="spec/limits.toml")
    table = f'HELLO = {{\n{hello}}}\n"""As the reply to `hello` tells them."""\n'
    return f'"""Limits of the wire. {mark}"""\n\n{constants}\n{table}'


def limits_page(limits: Sequence[Entry]) -> str:
    rows = [
        [e["what"], f"{e['value']}", e["beyond"], f"`{e['name']}`" if e.get("hello", False) else ""] for e in limits
    ]
    return (
        f"<!-- {MARK.format(source='spec/limits.toml')} -->\n# Limits\n\n"
        "They hold whatever the settings say. The last column names those that the reply to\n"
        "[`hello`](protocol.md#hello) tells: a client goes by these, for another version may have others. Further\n"
        "limits are [settings](settings.md).\n\n" + md_table(["at most", "", "beyond it", "in `hello`"], rows)
    )


# --- methods


def methods_header(methods: Sequence[Entry]) -> str:
    declared = "".join(f"ph_method {method['function']};\n" for method in methods)
    tables = "\n".join(
        x_macro(
            f"PH_{who.upper()}_METHODS",
            [f'"{method["name"]}", {method["function"]}' for method in methods if method["who"] == who],
        )
        for who in AUDIENCES
    )
    about = "Which function serves which method."
    return header("spec/methods.toml", "PH_METHOD_TABLE_H", about, f"{declared}\n{tables}")


def methods_page(methods: Sequence[Entry]) -> str:
    rows = [
        [f"[`{e['name']}`](protocol.md#{e['name'].removeprefix('@')}{suffix(methods, e)})", e["who"], e["what"]]
        for e in methods
    ]
    return (
        f"<!-- {MARK.format(source='spec/methods.toml')} -->\n# Methods\n\n"
        "What can be asked for over a socket. *private*: by the daemon's own processes alone.\n\n"
        + md_table(["method", "for", "what it gives"], rows)
    )


def suffix(methods: Sequence[Entry], entry: Entry) -> str:
    """What renderers put at the end of an anchor that is there already."""
    plain = entry["name"].removeprefix("@")
    return "-1" if entry["name"].startswith("@") and any(other["name"] == plain for other in methods) else ""


def generated(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of every file."""
    statistics = read_statistics((root / "spec/statistics.toml").read_text())
    yield "pharaohd/csrc/base/stats_slot.h", stats_header(statistics)
    yield "pharaohd/statistics.py", statistics_module(statistics)
    yield "docs/reference/statistics.md", statistics_page(statistics)
    limits = read_limits((root / "spec/limits.toml").read_text())
    yield "libpharaoh/csrc/ph_limits.h", limits_header(limits)
    yield "libpharaoh/_limits.py", limits_module(limits)
    yield "docs/reference/limits.md", limits_page(limits)
    methods = read_methods((root / "spec/methods.toml").read_text())
    yield "pharaohd/csrc/service/method_table.h", methods_header(methods)
    yield "docs/reference/methods.md", methods_page(methods)
