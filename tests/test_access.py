"""Who may do what: a table of peers and policies."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest

from flask_ctl import AccessDenied, ConfigurationError
from flask_ctl.dispatch.commands import Role
from flask_ctl.dispatch.peer import Peer, this_process
from flask_ctl.dispatch.policy import FileAccess, Policy

ME, OTHER, GROUP = os.geteuid(), 54321, 54322
USER_NAME, GROUP_NAME = pwd.getpwuid(65534).pw_name, grp.getgrall()[0].gr_name
GROUP_GID = grp.getgrall()[0].gr_gid


def process(uid: int | None, gid: int | None = 9999, groups: tuple[int, ...] = ()) -> Peer:
    return Peer(42, uid, gid, groups)


TABLE = {
    "root": (process(0), {}, "operate"),
    "our own user": (process(ME), {}, "operate"),
    "this process": (this_process(), {}, "operate"),
    "our own user, whatever is allowed": (process(ME), {"observe": [f"uid:{ME}"]}, "operate"),
    "another user": (process(OTHER), {}, None),
    "another user with root's group": (process(OTHER, 0, (0, os.getegid())), {}, None),
    "a uid that may observe": (process(OTHER), {"observe": [f"uid:{OTHER}"]}, "observe"),
    "a uid that may operate": (process(OTHER), {"operate": [f"uid:{OTHER}"]}, "operate"),
    "a uid that stands in both": (
        process(OTHER),
        {"observe": [f"uid:{OTHER}"], "operate": [f"uid:{OTHER}"]},
        "operate",
    ),
    "a uid beside the one that is allowed": (process(OTHER + 1), {"operate": [f"uid:{OTHER}"]}, None),
    "a gid that has the number of an allowed uid": (process(1, OTHER), {"operate": [f"uid:{OTHER}"]}, None),
    "a uid that has the number of an allowed gid": (process(OTHER), {"operate": [f"gid:{OTHER}"]}, None),
    "a user by name": (process(65534), {"observe": [f"user:{USER_NAME}"]}, "observe"),
    "a group by number": (process(OTHER, GROUP), {"observe": [f"gid:{GROUP}"]}, "observe"),
    "a supplementary group": (process(OTHER, 1, (2, GROUP)), {"operate": [f"gid:{GROUP}"]}, "operate"),
    "a group by name": (process(OTHER, GROUP_GID), {"operate": [f"group:{GROUP_NAME}"]}, "operate"),
    "the higher role of a user and its group": (
        process(OTHER, GROUP),
        {"observe": [f"uid:{OTHER}"], "operate": [f"gid:{GROUP}"]},
        "operate",
    ),
    "a peer that nobody knows": (Peer(), {"operate": ["key:*", "uid:0", "gid:0"]}, None),
    "a pid alone": (Peer(pid=os.getpid()), {"operate": [f"uid:{ME}"]}, None),
    "a group alone": (Peer(gid=GROUP, groups=(GROUP,)), {"operate": [f"gid:{GROUP}"]}, None),
    "a uid that may inspect": (process(OTHER), {"observe": [f"uid:{OTHER}"], "inspect": [f"uid:{OTHER}"]}, "inspect"),
    "a key that is allowed to connect": (Peer(key="ann"), {}, "observe"),
    "a key that may operate": (Peer(key="ann"), {"operate": ["key:ann"]}, "operate"),
    "another key than the one that may operate": (Peer(key="bob"), {"operate": ["key:ann"]}, "observe"),
    "any key": (Peer(key="bob"), {"operate": ["key:*"]}, "operate"),
    "a key's own entry comes before any key's": (
        Peer(key="bob"),
        {"observe": ["key:bob"], "operate": ["key:*"]},
        "observe",
    ),
    "a key that is called like the pattern": (Peer(key="uid:0"), {"operate": ["uid:0"]}, "observe"),
    "plain TCP": (Peer(address="127.0.0.1"), {"operate": ["key:*"]}, "observe"),
}


@pytest.mark.parametrize(("peer", "allow", "role"), TABLE.values(), ids=TABLE)
def test_a_peer_has_the_role_that_the_table_gives(peer: Peer, allow: dict[str, list[str]], role: str | None) -> None:
    assert Policy.from_config(allow).role_of(peer) == role


def test_plain_tcp_may_operate_if_that_is_said() -> None:
    assert Policy.from_config(None, True).role_of(Peer(address="127.0.0.1")) == "operate"
    assert Policy.from_config(None, True).role_of(process(OTHER)) is None
    assert Policy.from_config(None, True).role_of(Peer()) is None


CHECKS = {
    "observe, has observe": ("observe", "observe", None),
    "observe, has operate": ("operate", "observe", None),
    "operate, has operate": ("operate", "operate", None),
    "operate, has observe": ("observe", "operate", "uid 54321 may observe this server but not operate it; CTL_ALLOW"),
    "inspect, has inspect": ("inspect", "inspect", None),
    "inspect, has operate": ("operate", "inspect", None),
    "inspect, has observe": ("observe", "inspect", "uid 54321 may observe this server but not inspect it; CTL_ALLOW"),
    "observe, has inspect": ("inspect", "observe", None),
    "operate, has inspect": ("inspect", "operate", "uid 54321 may inspect this server but not operate it; CTL_ALLOW"),
    "observe, has none": (None, "observe", "uid 54321 may not use this server; CTL_ALLOW of the app gives more"),
    "operate, has none": (None, "operate", "uid 54321 may not use this server; CTL_ALLOW of the app gives more"),
}


@pytest.mark.parametrize(("has", "needs", "message"), CHECKS.values(), ids=CHECKS)
def test_a_missing_role_is_denied_with_who_what_and_what_next(
    has: str | None, needs: Role, message: str | None
) -> None:
    policy = Policy.from_config({has: [f"uid:{OTHER}"]} if has else {})
    if message is None:
        policy.check(process(OTHER), needs)
        return
    with pytest.raises(AccessDenied) as caught:
        policy.check(process(OTHER), needs)
    assert caught.value.message.startswith(message)
    assert caught.value.data == {"role": has, "needs": needs}


def test_a_peer_without_a_name_is_denied_as_such() -> None:
    with pytest.raises(AccessDenied, match="a peer that the kernel can't name may not use this server"):
        Policy().check(Peer(), "observe")
    with pytest.raises(AccessDenied, match=r"a peer at 127\.0\.0\.1 may observe .* CTL_TCP_OPERATE"):
        Policy().check(Peer(address="127.0.0.1"), "operate")
    with pytest.raises(AccessDenied, match="the key 'ann' may observe this server but not operate it"):
        Policy().check(Peer(key="ann"), "operate")


FAULTS = {
    "no dict": (["uid:1"], "CTL_ALLOW has to be a dict of roles and lists, not ['uid:1']"),
    "an unknown role": ({"admin": ["uid:1"]}, "there is no role 'admin'; there are: observe, inspect, operate"),
    "a role that is no text": ({1: ["uid:1"]}, "there is no role 1; there are: observe, inspect, operate"),
    "a single text": ({"observe": "uid:1"}, "observe has to be a list as ['group:ops', 'uid:1001'], not 'uid:1'"),
    "no list": ({"observe": 1001}, "observe has to be a list as ['group:ops', 'uid:1001'], not 1001"),
    "a number": ({"observe": [1001]}, "1001 names nobody; write uid:1001"),
    "no kind": ({"observe": ["ann"]}, "'ann' names nobody; write uid:1001, user:ann"),
    "no name": ({"observe": ["user:"]}, "'user:' names nobody"),
    "an unknown kind": ({"observe": ["host:a"]}, "'host:a' names nobody"),
    "a uid that is a name": (
        {"observe": ["uid:ann"]},
        "'uid:ann' needs a number; for names there are user: and group:",
    ),
    "a negative uid": ({"observe": ["uid:-1"]}, "'uid:-1' needs a number"),
    "a user who is not there": ({"observe": ["user:nobody-here"]}, "this machine knows no user for 'user:nobody-here'"),
    "a group that is not there": ({"observe": ["group:no-ops"]}, "this machine knows no group for 'group:no-ops'"),
    "a user with a NUL": ({"observe": ["user:a\0b"]}, "this machine knows no user for"),
}


@pytest.mark.parametrize(("value", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_setting_is_refused_with_what_is_right(value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Policy.from_config(value)
    assert message in caught.value.message
    assert "CTL_ALLOW" in caught.value.message


def test_a_switch_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="CTL_TCP_OPERATE has to be True or False, not 'no'"):
        Policy.from_config(None, "no")


FILES = {
    "nobody else": ({}, FileAccess(0o600)),
    "keys only": ({"observe": ["key:*"], "operate": ["key:ann"]}, FileAccess(0o600)),
    "root and ourselves": ({"operate": ["uid:0", f"uid:{ME}"]}, FileAccess(0o600)),
    "one group": ({"observe": [f"gid:{GROUP}"]}, FileAccess(0o660, GROUP)),
    "one group twice": ({"observe": [f"gid:{GROUP}"], "operate": [f"gid:{GROUP}", "key:a"]}, FileAccess(0o660, GROUP)),
    "two groups": ({"observe": [f"gid:{GROUP}", "gid:1"]}, FileAccess(0o666)),
    "a user": ({"observe": [f"uid:{OTHER}"]}, FileAccess(0o666)),
    "a user and a group": ({"observe": [f"uid:{OTHER}"], "operate": [f"gid:{GROUP}"]}, FileAccess(0o666)),
}


@pytest.mark.parametrize(("allow", "access"), FILES.values(), ids=FILES)
def test_the_socket_file_is_as_open_as_the_policy_needs_and_no_more(
    allow: dict[str, list[str]], access: FileAccess
) -> None:
    assert Policy.from_config(allow).file_access() == access


def test_by_names_a_process_a_key_or_an_address() -> None:
    assert Peer(1, 2, 3, (4,)).describe() == {"uid": 2, "gid": 3, "pid": 1}
    assert Peer(key="ann", address="10.0.0.1").describe() == {"key": "ann"}
    assert Peer(address="127.0.0.1").describe() == {"uid": None, "gid": None, "pid": None, "address": "127.0.0.1"}


def test_one_is_responsible_for_all_the_loopback_addresses_that_one_takes() -> None:
    assert Peer(address="127.0.0.1").principal == Peer(address="127.8.9.1").principal == Peer(address="::1").principal
    assert (
        len({Peer(uid=1).principal, Peer(key="1").principal, Peer(address="10.0.0.1").principal, Peer().principal}) == 4
    )
