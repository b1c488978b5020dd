"""A profile as a file for https://www.speedscope.app, in the format of its file-format-schema.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .profiles import root_name

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The file as JSON: a sampled profile of the requests, and one of the other threads, if there are any."""
    frames = [{"name": frame["function"], "file": frame["file"], "line": frame["line"]} for frame in profile["frames"]]
    roots: dict[str, int] = {}

    def sampled(name: str, stacks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        samples = []
        for stack in stacks:
            root = roots.setdefault(root_name(stack), len(frames) + len(roots))
            samples.append([root, *stack["frames"]])
        weights = [stack["seconds"] for stack in stacks]
        end = sum(weights)
        return {
            "type": "sampled",
            "name": name,
            "unit": "seconds",
            "startValue": 0,
            "endValue": end,
            "samples": samples,
            "weights": weights,
        }

    kinds = {
        "requests": [stack for stack in profile["stacks"] if stack["route"] is not None],
        "other threads": [stack for stack in profile["stacks"] if stack["route"] is None],
    }
    profiles = [sampled(name, stacks) for name, stacks in kinds.items() if stacks or name == "requests"]
    return {
        "$schema": SCHEMA,
        "name": "flask-ctl profile",
        "exporter": "flask-ctl",
        "activeProfileIndex": 0,
        "shared": {"frames": [*frames, *({"name": name} for name in roots)]},
        "profiles": profiles,
    }
