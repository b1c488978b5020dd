"""Print what `make coverage` has measured as a table of rooms; exit 1 if one of PROMISED is below its limit."""

from __future__ import annotations

import collections
import json
import pathlib
import sys
import tempfile

import coverage

PROMISED = dict.fromkeys(("lifecycle", "dispatch", "protocol", "client", "transports"), 90.0)
"""The least percentage of lines and branches, for the rooms that have to be right on any machine."""

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = (ROOT / "flask_ctl", ROOT / "cli" / "flask_ctl_cli")


def room_of(path: pathlib.Path) -> str:
    """The directory or module below the package; the command line is one room."""
    package = next(package for package in PACKAGES if path.is_relative_to(package))
    return path.relative_to(package).parts[0] if package.name == "flask_ctl" else package.name


def measured() -> dict[str, collections.Counter[str]]:
    """The sums of each room."""
    data = coverage.Coverage()
    data.combine([str(ROOT / ".coverage")])
    data.save()
    rooms: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.NamedTemporaryFile("r") as report:
        # Not the copies of the package that some tests have made, and that are gone.
        data.json_report(outfile=report.name, include=[f"{package}/*" for package in PACKAGES])
        files = json.load(report)["files"]
    for name, file in files.items():
        numbers = {key: value for key, value in file["summary"].items() if isinstance(value, int)}
        rooms[room_of((ROOT / name).resolve())].update(numbers)
    return rooms


def main() -> int:
    rooms = measured()
    print(f"{'room':20} {'lines':>6} {'missed':>6} {'branches':>8} {'missed':>6} {'covered':>8}")
    short = []
    for room, sums in sorted(rooms.items()):
        lines, branches = sums["num_statements"], sums["num_branches"]
        missed, missed_branches = sums["missing_lines"], sums["missing_branches"]
        share = 100 * (1 - (missed + missed_branches) / max(lines + branches, 1))
        print(f"{room:20} {lines:6} {missed:6} {branches:8} {missed_branches:6} {share:7.1f}%")
        if share < PROMISED.get(room, 0):
            short.append(room)
    for room in short:
        print(f"{room} is below {PROMISED[room]:.0f} %", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
