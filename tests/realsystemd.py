"""Debian's systemd as process 1 of namespaces of its own, with units of the tests; it needs root and cgroup2."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
import sys

from harness import TIMEOUT, until

SYSTEMD = "/lib/systemd/systemd"

TARGETS = ("sysinit", "basic", "sockets", "multi-user", "shutdown", "umount", "default", "local-fs", "network", "paths",
           "timers", "slices", "system")  # fmt: skip

START = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind {directory}/machine-id /etc/machine-id
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH={directory}/units SYSTEMD_GENERATOR_PATH={directory}/none \\
    {systemd} --system --unit=default.target
"""


class Systemd:
    """Its network, and all files but /run and /proc, are those of the test; `run` shows what it has in /run."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._units = directory / "units"
        for name in ("units", "none"):
            (directory / name).mkdir()
        for target in TARGETS:
            (self._units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
        (directory / "machine-id").write_text("0" * 31 + "1\n")
        self._cgroup = _cgroup2() / f"flask-ctl-test-{os.getpid()}"
        self._cgroup.mkdir()
        self._pid = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        directory = self.directory
        script = START.format(directory=shlex.quote(str(directory)), systemd=SYSTEMD)
        log = shlex.quote(str(directory / "systemd.log"))
        spaces = "--pid --fork --kill-child --mount --cgroup --ipc --uts"
        inside = f"echo $$ >{self._cgroup}/cgroup.procs && exec unshare {spaces} sh -c {shlex.quote(script)}"
        # In the background: it is no child of the tests, each of which may leave none.
        started = subprocess.run(
            ["setsid", "sh", "-c", f"sh -c {shlex.quote(inside)} >{log} 2>&1 </dev/null & echo $!"],
            capture_output=True,
            text=True,
            check=True,
        )
        self._pid = int(started.stdout)
        until(lambda: self._answers(), lambda: f"systemd: {(directory / 'systemd.log').read_text()}")

    def add(self, name: str, text: str, **settings: str) -> None:
        """A unit, as a user of the tests' machine has it; `settings` go to its section [Service]."""
        binaries = pathlib.Path(sys.executable).parent
        text = text.replace("/srv/shop/.venv/bin", str(binaries)).replace("User=shop\n", "")
        text = text.replace("/srv/shop/current", str(self.directory))
        (self._units / name).write_text(text)
        if "[Service]" in text:
            more = {"StandardOutput": f"append:{self.directory}/out", "StandardError": f"append:{self.directory}/out"}
            lines = [f"{key}={value}" for key, value in {**more, **settings}.items()]
            extra = self._units / f"{name}.d"
            extra.mkdir(exist_ok=True)
            (extra / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        self("daemon-reload")

    @property
    def output(self) -> str:
        return (self.directory / "out").read_text() if (self.directory / "out").exists() else ""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`systemctl ARGUMENTS`."""
        return self.enter("systemctl", *arguments)

    def enter(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command where the units run."""
        pid = _child_of(self._pid)
        enter = ["nsenter", "--target", str(pid), "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=4 * TIMEOUT, stdin=subprocess.DEVNULL)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self("show", "--value", f"--property={name}", unit).stdout.strip()

    def close(self) -> None:
        """End it, and all units with it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        # The kernel ends the PID namespace's other processes with its process 1.
        until(lambda: not _populated(self._cgroup), "the end of the units")
        for directory, _, _ in sorted(os.walk(self._cgroup), reverse=True):
            os.rmdir(directory)

    def _answers(self) -> bool:
        pid = _child_of(self._pid)
        return pid is not None and self("is-system-running").stdout.strip() in ("running", "degraded")


def _cgroup2() -> pathlib.Path:
    with open("/proc/mounts") as mounts:
        return pathlib.Path(next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2"))


def _populated(cgroup: pathlib.Path) -> bool:
    return "populated 1" in (cgroup / "cgroup.events").read_text()


def _child_of(pid: int) -> int | None:
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None
