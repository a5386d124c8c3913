"""What the documents say of the code is there: links, names, commands, settings, methods, bytes.

The examples of docs/reference/protocol.md are also sent to a real daemon: its answers have the shape that is shown.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import socket
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import msgpack
import pytest

from libpharaoh.errors import StartError, by_code
from pharaohd import cli
from pharaohd.ctl import cli as ctl_cli
from pharaohd.obelisk import Identity, create, host_id
from pharaohd.settings import Layout, Settings
from tests.support.daemon import Daemon, short_directory
from tests.support.records import first_record

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PROTOCOL = (ROOT / "docs/reference/protocol.md").read_text()
LISTED_BY_PATTERN = re.compile(r"`((?:libpharaoh|pharaohd|tools|tests|demo|bench|spec|docs)/[\w./-]+\.\w+)(?::(\w+))?`")

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {one + (f"-{before}" if (before := plain[:at].count(one)) else "") for at, one in enumerate(plain)}


@each_page
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@cache
def defined(file: Path) -> set[str]:
    """The functions, classes, structs and macros that a source file defines."""
    text = file.read_text()
    if file.suffix == ".py":
        return set(re.findall(r"^\s*(?:async )?(?:def|class) (\w+)", text, flags=re.MULTILINE))
    functions = re.findall(r"^(?!return|else)(?:[A-Za-z]\w*[ *]+)+\**(\w+)\((?:[^;]*?)\) \{", text, flags=re.MULTILINE)
    return {*functions, *re.findall(r"^(?:struct|enum|#define) (\w+)", text, flags=re.MULTILINE)}


@each_page
def test_named_code_exists(page: Path) -> None:
    for path, name in LISTED_BY_PATTERN.findall(page.read_text()):
        assert "NAME" in path or (ROOT / path).exists(), f"{page.name}: {path}"
        assert not name or name in defined(ROOT / path), f"{page.name}: {path}:{name}"


def test_every_source_file_has_its_reason() -> None:
    """docs/internals/design.md lists each file of the product, by name or as `name.*`."""
    table = (ROOT / "docs/internals/design.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    missing = []
    layers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "pharaohd/csrc").iterdir() if path.is_dir())
    for folder in ("libpharaoh", "libpharaoh/csrc", "pharaohd", "pharaohd/csrc", *layers):
        for file in sorted((ROOT / folder).glob("*.[chp]*")):
            trivial = file.name.startswith("__") or file.name.startswith("_core") or file.suffix == ".pyc"
            listed = any(
                folder in row and re.search(rf"[`/]{re.escape(form)}`", row)
                for row in rows
                for form in (file.name, f"{file.stem}.*")
            )
            if file.suffix in (".c", ".h", ".py") and not trivial and not listed:
                missing.append(f"{folder}/{file.name}")
    assert missing == []


def test_every_decision_is_listed() -> None:
    design = (ROOT / "docs/internals/design.md").read_text()
    for page in sorted((ROOT / "docs/decisions").glob("*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f"[{title}](../decisions/{page.name})" in design
        for part in ("**Context.**", "**Choice.**", "**Cost.**"):
            assert part in page.read_text() or "| cost |" in page.read_text(), f"{page.name} lacks {part}"


# Commands, settings, errors


def commands_in(page: Path) -> Iterator[list[str]]:
    text = page.read_text()
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
             for line in block.splitlines()]  # fmt: skip
    for span in [*spans, *lines]:
        for command in re.split(r"&&|\||;|\$\(|\)", span.partition("#")[0]):
            words = re.sub(r"[\[\]&…]", " ", command).split()
            if words and words[0] == "until":
                words = words[1:]
            if words and words[0] in ("pharaohd", "pharaohctl", "make"):
                yield shlex.split(" ".join(words))


def assert_understood(words: list[str], command: click.Command) -> None:
    """The subcommands and options of a command line exist."""
    context = click.Context(command)
    seen = list(command.params)
    if isinstance(command, click.Group):  # options that name the daemon may stand before the subcommand
        seen += command.commands["status"].params
    takes_value = False
    for word in words[1:]:
        if word.startswith("-"):
            known = {option: one for one in seen for option in (*one.opts, *one.secondary_opts)}
            known["-h"] = known["--help"] = click.Option(["--help"], is_flag=True)
            assert word in known, f"{' '.join(words)}: no option {word}"
            one = known[word]
            takes_value = isinstance(one, click.Option) and not one.is_flag
        elif takes_value:
            takes_value = False
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            assert found is not None, f"{' '.join(words)}: no command {word}"
            command, context = found, click.Context(found)
            seen += command.params


@each_page
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands_in(page):
        if words[0] == "pharaohctl":
            assert_understood(words, ctl_cli.cli)
        elif words[0] == "pharaohd":
            assert_understood(words, cli.main)
        elif len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in targets, f"{page.name}: {' '.join(words)}"


def test_the_check_of_commands_can_fail() -> None:
    for wrong in ("pharaohctl obelisk mend", "pharaohctl next --bse32", "pharaohctl obelisk bump 3 --creat"):
        with pytest.raises(AssertionError):
            assert_understood(wrong.split(), ctl_cli.cli)


@each_page
def test_settings_exist(page: Path) -> None:
    sections = {section.name: section.default_factory for section in dataclasses.fields(Settings)}
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)`", prose(page)):
        declared = sections.get(section)
        if declared is None or key in ("c", "h", "py", "sock"):
            continue
        keys = {declaration.name for declaration in dataclasses.fields(declared)}  # type: ignore[arg-type]
        assert key in keys, f"{page.name}: {section}.{key}"


def test_every_exit_status_says_what_it_wants() -> None:
    page = (ROOT / "docs/operating/operating.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page, flags=re.MULTILINE)
    starts = [one for one in by_code.values() if issubclass(one, StartError)]
    assert sorted((int(status), name) for status, name in rows) == sorted((one.exit_status, one.name) for one in starts)


# The wire


@dataclasses.dataclass(frozen=True)
class Example:
    """A message of docs/reference/protocol.md: as bytes, and what they are said to mean."""

    direction: str
    meaning: list[object]
    data: bytes


def exchanges() -> list[tuple[Example, Example]]:
    found = []
    for block in re.findall(r"^```wire\n(.*?)^```", PROTOCOL, flags=re.DOTALL | re.MULTILINE):
        messages = re.findall(r"^([<>]) (.*)\n((?:  [0-9a-f ]+\n)+)", block, flags=re.MULTILINE)
        request, reply = [Example(at, json.loads(text), bytes.fromhex(data)) for at, text, data in messages]
        assert (request.direction, reply.direction) == (">", "<")
        found.append((request, reply))
    return found


EXCHANGES = exchanges()


def shape(value: object) -> object:
    """What must be the same in every answer: kinds, names of maps, and the kinds of a list's items."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def test_methods_are_those_of_the_daemon() -> None:
    table = (ROOT / "pharaohd/csrc/service/method_table.h").read_text()
    served = re.findall(r'X\("([^"]+)", \w+\)', table)
    assert len(served) > 5
    assert sorted(re.findall(r"^### `([^`]+)`", PROTOCOL, flags=re.MULTILINE)) == sorted(served)
    assert {request.meaning[2] for request, _ in EXCHANGES} == set(served)


@pytest.mark.parametrize(("request_", "reply"), EXCHANGES, ids=[str(request.meaning[2:]) for request, _ in EXCHANGES])
def test_hex_examples_decode(request_: Example, reply: Example) -> None:
    for example in (request_, reply):
        assert msgpack.unpackb(example.data) == example.meaning
    assert request_.meaning[1] == reply.meaning[1]
    assert (request_.meaning[0], reply.meaning[0]) == (0, 1)


def test_a_real_daemon_answers_in_the_shape_shown() -> None:
    settings = {"host": {"name": "a"}}  # as in the examples
    with short_directory() as directory, Daemon(directory, coordinators=1, settings=settings) as daemon:
        for request, reply in EXCHANGES:
            path = daemon.private_socket(0) if str(request.meaning[2]).startswith("@") else daemon.socket
            answer = asked(path, request.data)
            told, shown = shape(answer[3]), shape(reply.meaning[3])
            if request.meaning[2] == "stats":  # a new figure needs no new example
                assert isinstance(told, dict)
                assert isinstance(shown, dict)
                assert shown.items() <= told.items()
            else:
                assert told == shown, request.meaning
            assert answer[:2] == reply.meaning[:2]
            if reply.meaning[2] is not None:
                assert answer[2] == reply.meaning[2]


def asked(path: str, data: bytes) -> list[object]:
    """The one reply to one request, on a connection of its own. The kernel closes descriptors that nobody receives."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        connection.sendall(data)
        unpacker = msgpack.Unpacker()
        while True:
            received = connection.recv(65536)
            assert received, "hung up"
            unpacker.feed(received)
            for reply in unpacker:
                return list(reply)


# The file


def test_the_obelisk_s_bytes_are_where_the_table_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/internals/obelisk.md").read_text()
    identity_rows, record_rows = (
        {
            name: (int(offset), int(size))
            for offset, size, name in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", part, re.M)
        }
        for part in page.partition("## Ceiling record")[::2]
    )
    path = tmp_path / "0042.obelisk"
    create(
        str(path), Identity(42, 77, Layout(40, 10, 14), 1_234_567, b"c" * 16, host_id()), first_record(99, start_id=7)
    )
    data = path.read_bytes()

    def number(rows: dict[str, tuple[int, int]], base: int, name: str) -> int:
        offset, size = rows[name]
        return int.from_bytes(data[base + offset : base + offset + size], "little")

    found = {name: number(identity_rows, 0, name) for name in identity_rows}
    expected = {"version": 1, "bytes": len(data), "coordinator": 42, "modulus": 77, "ms_bits": 40,
                "coordinator_bits": 10, "sequence_bits": 14, "epoch_ms": 1_234_567}  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["magic"] == struct.unpack("<Q", b"POBELISK")[0]
    assert found["cluster_id"] == int.from_bytes(b"c" * 16, "little")
    assert found["host_id"] == int.from_bytes(host_id(), "little")
    first = {name: number(record_rows, 4096, name) for name in record_rows}
    assert {name: first[name] for name in ("number", "slot", "coordinator", "ceiling", "clean", "start_id")} == {
        "number": 1, "slot": 0, "coordinator": 42, "ceiling": 99, "clean": 1, "start_id": 7,
    }  # fmt: skip
    assert first["magic"] == struct.unpack("<Q", b"PCEILING")[0]
    assert first["file_id"] == found["file_id"] != 0
    for rows, base in ((identity_rows, 0), (record_rows, 4096)):
        assert number(rows, base, "crc") == crc32c(data[base : base + 508])


def crc32c(data: bytes) -> int:
    """RFC 3720's, written anew from its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
