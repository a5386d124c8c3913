"""A private PostgreSQL with logical decoding on, for the example of change capture and its test.

    python -m tools.postgres DIRECTORY      # serves in the foreground, prints how to connect

The machine's own programs, else those of Debian 12, unpacked below build/. It listens on a Unix socket only, which
none but root and its own user reach. Not for data that matters: it is not synced.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tools import debian
from tools.debian import NotHere

# The server, and what it and initdb link to beyond what every Debian has.
DEBIAN_PACKAGES = (
    "postgresql-15", "libpq5", "libgssapi-krb5-2", "libicu72", "libk5crypto3", "libkeyutils1", "libkrb5-3",
    "libkrb5support0", "libldap-2.5-0", "liblz4-1", "libpam0g", "libsasl2-2", "libssl3", "libsystemd0", "libxml2",
    "libzstd1",
)  # fmt: skip
USER = "postgres"
# Without fsync it survives its own crash, not the machine's; a start after one takes no seconds for syncing.
SETTINGS = ("listen_addresses=", "wal_level=logical", "fsync=off", "max_connections=30", "jit=off")
WATCHDOG_S = 30.0


def programs() -> tuple[Path, dict[str, str]]:
    """Where initdb and postgres lie, and their environment. Raises NotHere."""
    found = shutil.which("postgres")
    if found is not None and shutil.which("initdb") is not None:
        return Path(found).parent, dict(os.environ)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(3))
    if installed:
        return installed[-1].parent, dict(os.environ)
    tree = debian.unpacked("postgresql", DEBIAN_PACKAGES)
    return tree / "usr" / "lib" / "postgresql" / "15" / "bin", debian.environment(tree)


def as_nobody() -> list[str]:
    """Postgres refuses to be root. It keeps root's way past permissions: this tree may lie where nobody else looks.

    no_setuid_fixup is for access(), by which it checks its own files: that forgets capabilities otherwise.
    """
    if os.geteuid() != 0:
        return []
    user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--securebits=+no_setuid_fixup"]
    return ["setpriv", *user, *(f"--{kind}-caps=-all,+dac_override" for kind in ("inh", "ambient"))]


class Postgres:
    """One in `directory`, which is made when it is missing. A context manager: stopped afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.dsn = f"host={self.directory} user={USER} dbname=postgres"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes connections. Raises NotHere."""
        bin_dir, environment = programs()
        if not self.data.exists():
            self._create(bin_dir, environment)
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        options = ("-D", str(self.data), "-k", str(self.directory), *settings)
        self._process = self._run(bin_dir / "postgres", environment, *options)
        deadline = time.monotonic() + WATCHDOG_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotHere(f"postgres does not serve: {self.log.read_text(errors='replace')[-500:]}")
            time.sleep(0.01)

    def _create(self, bin_dir: Path, environment: dict[str, str]) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
        partial = self.directory / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        options = (
            f"--pgdata={partial}",
            f"--username={USER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        process = self._run(bin_dir / "initdb", environment, *options)
        if process.wait() != 0:
            raise NotHere(f"initdb failed: {self.log.read_text(errors='replace')[-500:]}")
        partial.rename(self.data)

    def _run(self, program: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
        command = [*as_nobody(), str(program), *options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _ready(self) -> bool:
        """As pg_ctl finds it out: the eighth line of its pid file; the first tells whether it is this one's."""
        assert self._process is not None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def stop(self, *, crash: bool = False) -> None:
        """crash: nothing is written, and the next start recovers from the log."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(WATCHDOG_S)
            self._process = None

    def wait(self) -> int:
        """Until it ends by itself; the exit status."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main(directory: str) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Postgres(Path(directory)) as postgres:
            print(postgres.dsn, flush=True)
            return postgres.wait()
    except KeyboardInterrupt:
        return 0
    except NotHere as why:
        print(why, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else f"usage: {sys.argv[0]} DIRECTORY")
