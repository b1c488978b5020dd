"""The command that looks for what commonly breaks."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ..dispatch.commands import Impact
from ..dispatch.futures import then
from ..dispatch.replies import Call
from ..errors import CommandError
from ..inspection.checkup import directory_findings, socket_findings
from ..inspection.questions import Answer, gathered
from ..servers.attributes import losses
from ..system.addresses import parse_address
from ..system.findings import note, problem
from ..system.mounts import mounts
from ..system.reserve import reserve
from .app import AppConfig
from .builtin import builtin
from .controller import Controller


class DoctorCommands:
    """What is wrong with the server, and what helps."""

    def __init__(self, controller: Controller[Any], app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("observe", Impact("low"))
    def doctor(self, call: Call) -> Future[dict[str, Any]]:
        """Look for what commonly breaks, with the remedy."""
        # The program may have used up its descriptors.
        with reserve.lend():
            own = self._findings()

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            workers: dict[tuple[str, ...], list[int]] = {}
            for finding in found:
                pid = finding.pop("worker")
                workers.setdefault(tuple(finding.values()), []).append(pid)
            of_workers = [
                {"check": check, "severity": severity, "message": message, "remedy": remedy, "workers": pids}
                for (check, severity, message, remedy), pids in workers.items()
            ]
            return {"findings": own + of_workers, "unanswered": errors}

        return then(self._controller.processes.ask(self._app, "doctor", {}, None), merge)

    def _findings(self) -> list[dict[str, Any]]:
        """Of the server as a whole."""
        found = []
        try:
            obstacle = self._controller.reload_obstacle()
        except CommandError as error:
            found.append(problem("master", error.message, "run the master as the user of its workers"))
        else:
            # That of an attribute that is missing is a finding of its own.
            if obstacle is not None and not any(reason in obstacle for reason, _ in losses()):
                message = f"a reload is not possible: {obstacle}"
                found.append(note("reload", message, "for new code stop it, and start it again"))
        directory = self._controller.start_directory
        found += [] if directory is None else directory_findings(directory)
        with suppress(OSError):
            paths = [path for each in self._controller.endpoints if (path := parse_address(each).path)]
            found += socket_findings(paths, mounts())
        fleet = self._controller.fleets.get(self._app.name)
        if fleet is not None and (reason := fleet()["problem"]):
            remedy = "see that the NATS server runs, and what CTL_FLEET and the settings behind it name"
            found.append(problem("fleet", f"there is no control over NATS: {reason}", remedy))
        return [finding._asdict() for finding in found]
