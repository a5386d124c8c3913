"""A worker without a supervisor, for tools that cannot follow one: `python -m tests.counted.lone_worker DIRECTORY`.

Coordinator 0 of 1, serving at DIRECTORY/rpc.sock until SIGTERM. The loop does not watch: how often it looks in vain is
a matter of time, which is not to be counted.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from pharaohd import hosttime, log, manifest, obelisk, settings, stats, worker
from pharaohd.contract import WorkerSpec
from pharaohd.core_settings import core_settings

NO_WATCHING = {
    "PHARAOHD_CLUSTER_COORDINATORS": "1",
    "PHARAOHD_RPC_SPIN_US": "0",
    "PHARAOHD_COUNTERS_COMMIT_SPIN_US": "0",
}


def listening(path: str) -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    listener.setblocking(False)
    return listener.detach()


def main(directory: Path) -> int:
    chosen = settings.load(None, directory, NO_WATCHING)
    host = chosen.host
    os.makedirs(host.coordinators_dir)
    os.makedirs(host.private_dir, mode=0o700)
    log.configure("info", "json")
    clock = hosttime.Clock(chosen)

    def create(coordinator: int, path: str) -> None:
        obelisk.create(path, obelisk.identity_for(chosen, coordinator), hosttime.first_record(clock))

    manifest.ensure(host.state_dir, [0], create, may_be_new=True)
    host_page, _ = hosttime.start(chosen, clock)
    page = stats.Page(host.runtime_dir, 1, [0], 0o600, os.getgid())
    try:
        page.header.first_live = 0
        control, _supervisor = socket.socketpair()
        return worker.run(
            WorkerSpec(
                coordinator=0,
                slot=0,
                obelisk_path=manifest.obelisk_path(host.state_dir, 0),
                counters_path=manifest.counters_path(host.state_dir, 0),
                socket_path=host.socket_path,
                listen_fd=listening(host.socket_path),
                own_fd=listening(host.coordinator_socket_path(0)),
                private_fd=listening(host.private_socket_path(0)),
                control_fd=control.detach(),
                stats_address=page.address,
                host_page_address=host_page.address,
                core_settings=core_settings(chosen),
                settings=chosen,
            )
        )
    finally:
        page.remove()
        host_page.close(host.state_dir, remove=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
