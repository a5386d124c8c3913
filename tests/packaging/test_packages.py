"""The sdist gives a wheel that every CPython takes; from both comes the client alone, and with `[daemon]` the rest."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import libpharaoh
from pharaohd.entry import PACKAGES
from tests.support.daemon import ROOT, SERVING, WATCHDOG_S, wait_until
from tools import mutate

pytestmark = pytest.mark.timeout(600)  # what is compiled and fetched takes longer on some machines

PYTHONS = sorted({"3.11", "3.12", "3.13", f"3.{sys.version_info.minor}"})
PRODUCT = ("libpharaoh", "pharaohd")
MODULES = {f"{name}.abi3.so" for name in ("libpharaoh/_native", "pharaohd/_core")}

PROBE = """
import os, platform, sys, sysconfig
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(platform.python_implementation(), "%d.%d" % sys.version_info[:2], headers and not free_threaded)
"""

PARSE = """
import json, sys
from importlib.metadata import distributions
import libpharaoh, libpharaoh.aio, libpharaoh.testing
from libpharaoh import _native
assert issubclass(libpharaoh.Client, _native.Client)
print(json.dumps({
    "parsed": repr(libpharaoh.parse(int(sys.argv[1]))),
    "files": [_native.__file__],
    "installed": [one.metadata["Name"] for one in distributions()],
}))
"""

# The schema is read by fastavro, in the router: what is imported last.
DRAW = """
import json, sys
import libpharaoh
with libpharaoh.connect(sys.argv[1]) as client:
    ids = [client.next_id(), *client.next_ids(1000), client.next_id()]
    schema = client.register_schema("orders", sys.argv[2])
    print(json.dumps({"ids": ids, "schema": client.get_schema(schema)["schema"]}))
"""


# Nothing may be imported from this tree: PYTHONPATH names it when tools/mutate.py runs the tests.
ENVIRON = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(cwd: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=ENVIRON, capture_output=True, text=True, check=False)


def done(cwd: Path, *command: str | Path) -> str:
    """What a command prints that has to succeed."""
    outcome = run(cwd, *command)
    assert outcome.returncode == 0, f"{command}:\n{outcome.stdout[-3000:]}\n{outcome.stderr[-3000:]}"
    return outcome.stdout


def interpreter(version: str) -> str:
    """A CPython of this version that can compile: this one, from PATH or of pyenv. Without one the test is skipped."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for python in (sys.executable, on_path, *map(str, sorted(pyenv.glob(f"versions/{version}*/bin/python")))):
        if python and run(Path("/"), python, "-I", "-c", PROBE).stdout.split() == ["CPython", version, "True"]:
            return python
    pytest.skip(f"no CPython {version} with headers here")


@dataclass(frozen=True)
class Built:
    """What `python -m build` made."""

    sdist: Path
    wheel: Path

    def names(self) -> set[str]:
        """The files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def about(self, file: str) -> list[tuple[str, str]]:
        """The headers of one of the wheel's own files."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
            return Parser().parsestr(archive.read(name).decode()).items()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a copy of the tree: files of an earlier build would get into the sdist. The wheel is made from the sdist."""
    directory = tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT, directory / "tree", ignore=shutil.ignore_patterns(*mutate.NOT_COPIED))
    done(directory, sys.executable, "-m", "build", "--outdir", directory / "dist", directory / "tree")
    (sdist,) = directory.glob("dist/*.tar.gz")
    (wheel,) = directory.glob("dist/*.whl")
    return Built(sdist, wheel)


class Environment:
    """A fresh virtual environment. The pip of this one serves it: to install another takes longer than all else."""

    def __init__(self, directory: Path, python: str) -> None:
        self.directory = directory
        self.bin = directory / "venv" / "bin"
        done(directory, python, "-I", "-m", "venv", "--without-pip", directory / "venv")

    def pip(self, *arguments: str | Path) -> None:
        done(self.directory, sys.executable, "-m", "pip", "--python", self.bin / "python", "--quiet", *arguments)

    def python(self, code: str, *arguments: str) -> Any:
        """What a program prints, as JSON."""
        return json.loads(done(self.directory, self.bin / "python", "-I", "-c", code, *arguments))


def test_the_wheel_is_for_every_cpython(built: Built) -> None:
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", built.wheel.name)
    assert [value for name, value in built.about("WHEEL") if name == "Tag"] == [built.wheel.stem.split("-", 2)[2]]
    assert {name for name in built.names() if ".so" in name} == MODULES


def test_it_keeps_to_the_limited_api(built: Built, tmp_path: Path) -> None:
    """abi3audit has an environment of its own: it brings rich, which structlog would import at every start here."""
    environment = Environment(tmp_path, sys.executable)
    environment.pip("install", "abi3audit>=0.0.26")
    done(tmp_path, environment.bin / "abi3audit", "--strict", built.wheel)


def test_the_wheel_holds_what_runs(built: Built) -> None:
    """All of the packages, and nothing that only a build needs."""
    files = (
        file
        for package in PRODUCT
        for pattern in ("*.py", "*.pyi", "py.typed")
        for file in (ROOT / package).rglob(pattern)
    )
    wanted = {str(file.relative_to(ROOT)) for file in files if file.name != "_build.py"}
    assert {name for name in built.names() if ".dist-info/" not in name} == wanted | MODULES


def test_the_client_needs_one_package(built: Built) -> None:
    needed = [value for name, value in built.about("METADATA") if name == "Requires-Dist" and "extra ==" not in value]
    assert sorted(re.split(r"\W", value)[0] for value in needed) == ["msgpack"]


def check_client(environment: Environment, id: int) -> None:
    """It parses and loads its C modules, and the daemon's packages have not come with it."""
    answer = environment.python(PARSE, str(id))
    assert answer["parsed"] == repr(libpharaoh.parse(id))
    assert all(Path(file).is_relative_to(environment.bin.parent) for file in answer["files"])
    assert {f"libpharaoh/{Path(file).name}" for file in answer["files"]} <= MODULES
    installed = {re.sub(r"[-_.]+", "_", name).lower() for name in answer["installed"]}
    assert installed >= {"pharaoh", "msgpack"}
    assert not installed & set(PACKAGES)


def refusal(environment: Environment) -> list[str]:
    """The commands end with one sentence each. Returns the arguments of pip that it names."""
    named = set()
    for name, *command in (
        ("pharaohd", "pharaohd", "--dir", "run"),
        ("pharaohctl", "pharaohctl", "status"),
        ("pharaohd", "python", "-I", "-m", "pharaohd", "--help"),
        ("pharaohctl", "python", "-I", "-m", "pharaohd.ctl", "--help"),
    ):
        outcome = run(environment.directory, environment.bin / command[0], *command[1:])
        assert (outcome.returncode, outcome.stdout) == (1, ""), outcome.stderr
        sentence = re.fullmatch(rf"{name}: .*\((.*)\): pip (install .*)\n", outcome.stderr)
        assert sentence is not None, outcome.stderr
        assert sentence[1].split(", ") == list(PACKAGES)
        named.add(sentence[2])
    (arguments,) = named
    return shlex.split(arguments)


def check_daemon(environment: Environment) -> None:
    """It starts, serves the client and the operator, and stops cleanly."""
    home, log = environment.directory / "run", environment.directory / "log"
    with open(log, "wb") as output:
        daemon = subprocess.Popen(
            [environment.bin / "pharaohd", "--dir", home],
            cwd=environment.directory, env=ENVIRON, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until(lambda: daemon.poll() is not None or SERVING in log.read_text(), "the daemon serves or ends")
        assert daemon.poll() is None, log.read_text()
        schema = '{"type": "record", "name": "Order", "fields": []}'
        drawn = environment.python(DRAW, str(home / "rpc.sock"), schema)
        assert all(earlier < later for earlier, later in pairwise(drawn["ids"]))
        assert drawn["schema"] == schema
        done(environment.directory, environment.bin / "pharaohctl", "--dir", home, "status")
        daemon.terminate()
        assert daemon.wait(WATCHDOG_S) == 0, log.read_text()
    finally:
        if daemon.poll() is None:
            daemon.kill()  # its workers see it and stop
            daemon.wait()


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs(built: Built, kind: str, version: str, directory: Path, rng: random.Random) -> None:
    """The sdist is compiled by each version; what its build needs is installed first, so as not to be fetched twice."""
    environment = Environment(directory, interpreter(version))
    if kind == "sdist":
        environment.pip("install", *tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    environment.pip("install", "--no-build-isolation", built.wheel if kind == "wheel" else built.sdist)
    if kind == "sdist":
        environment.pip("uninstall", "-y", "cffi")  # what compiled it is not what it runs with
    check_client(environment, rng.randrange(1 << 63))
    environment.pip(*refusal(environment))
    check_daemon(environment)
