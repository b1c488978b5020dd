"""Draw docs/terminal.svg from a real run: `make picture`.

Starts the quickstart in a temporary directory, types the commands, and draws what they print.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request

from rich.console import Console
from rich.text import Text

from flask_ctl import ControlClient

HERE = pathlib.Path(__file__).parent
BIN = pathlib.Path(sys.executable).parent


class Terminal:
    """A directory with the quickstart, and a record of what was typed and printed there."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLASK_CTL_SOCKET": str(directory / "app.sock"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def note(self, text: str) -> None:
        """A remark on what happens beside the terminal."""
        self._console.print(Text(f"# {text}", style="bright_black"))

    def type(self, command: str) -> None:
        """Run a command by the shell; show it, its output and a failure's exit code."""
        self._console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        done = subprocess.run(
            command, shell=True, cwd=self._directory, env=self.environment, capture_output=True, text=True
        )
        output = (done.stdout + done.stderr).replace(str(self._directory), "/srv/shop").rstrip()
        if output:
            self._console.print(Text(output))
        if done.returncode:
            self._console.print(Text(f"exit code {done.returncode}", style="red"))

    def save(self, path: pathlib.Path) -> None:
        """Write the picture."""
        svg = self._console.export_svg(title="flask-ctl", unique_id="terminal")
        # A reader's own monospace font: no page of the documentation loads anything from elsewhere.
        path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        shutil.copy(HERE.parent / "examples" / "quickstart" / "app.py", directory)
        terminal = Terminal(directory)
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=directory,
            env=terminal.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        try:
            play(terminal, directory)
        finally:
            server.terminate()
            server.wait()
        terminal.save(HERE / "terminal.svg")


def play(terminal: Terminal, directory: pathlib.Path) -> None:
    """Status, a reload that a request survives, a refused one, a stop."""
    address = terminal.environment["FLASK_CTL_SOCKET"]
    subprocess.run([BIN / "flask-ctl", "ping", "--quiet", "--wait", "20"], env=terminal.environment, check=True)
    with ControlClient(address) as client:
        url = client.status()["server"]["listeners"][0]
    urllib.request.urlopen(url).read()
    terminal.type("flask-ctl status")
    slow = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import urllib.request as u; print(u.urlopen({url + '/slow'!r}).read().decode(), end='')",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with ControlClient(address) as client:
        while not client.status()["requests"]["in_flight"]:
            pass
    terminal.note("meanwhile a request of three seconds has begun")
    terminal.type("flask-ctl reload")
    terminal.note(f"the request was answered by the old code: {(slow.communicate()[0] or 'CUT').strip()}")
    code = (directory / "app.py").read_text()
    (directory / "app.py").write_text(re.sub("^from flask_ctl", "from flask_ctrl", code, flags=re.MULTILINE))
    terminal.type("flask-ctl reload")
    terminal.note("nothing has happened: the old code still serves")
    terminal.type("flask-ctl stop")


if __name__ == "__main__":
    main()
