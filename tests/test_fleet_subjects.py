"""The names of things at a NATS server, and the addresses of one."""

from __future__ import annotations

import pytest

from flask_ctl.errors import ConfigurationError
from flask_ctl.fleet.settings import Broker, servers_of, without_secret
from flask_ctl.fleet.subjects import ALL, subject_of, token


@pytest.mark.parametrize("name", ["shop", "my_shop-2", "A"])
def test_a_plain_name_is_its_own_token(name: str) -> None:
    assert token(name) == name


def test_other_names_have_tokens_of_their_own_that_a_subject_can_hold() -> None:
    names = ["", "_all", "a.b", "a_b", "a b", "a*", "a>", "日本", "中国", "\udcff"]
    tokens = [token(name) for name in names]
    assert len(set(tokens)) == len(names)
    assert ALL not in tokens
    assert not [text for text in tokens if set(text) & set(" .*>") or not text]


def test_a_subject_has_role_app_and_instance() -> None:
    assert subject_of("operate", "shop", "web-1") == "flask_ctl.operate.shop.web-1"
    assert subject_of("observe", "shop", ALL) == "flask_ctl.observe.shop._all"


ADDRESSES = {
    "broker": ["nats://broker:4222"],
    "nats://a, tls://b:7": ["nats://a:4222", "tls://b:7"],
    "nats://[::1]:5": ["nats://[::1]:5"],
    "ws://broker": ["ws://broker"],
    "nats://ann:p%2Fq@broker": ["nats://ann:p%2Fq@broker:4222"],
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_get_a_scheme_and_a_port(text: str) -> None:
    assert servers_of(text, "X") == ADDRESSES[text]


WRONG = ["http://a", "nats://", "nats://a:0", "nats://a:x", "nats://a/b", "nats://a?b", "nats://[::1", "a,,b", 7, []]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_wrong_address_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"X: .* is no URL|X has to be a URL"):
        servers_of(value, "X")


SECRETS = [
    "nats://ann:geheim@a:1",
    "nats://ann:ge@heim@a:1",
    "nats://ann:geheim/@a:1",
    "nats://geheim@a:1",
    "ann:geheim@a",
]


@pytest.mark.parametrize("url", SECRETS)
def test_what_is_shown_of_an_address_has_no_secret(url: str) -> None:
    assert "heim" not in without_secret(url)
    assert without_secret(url).startswith(("nats://a", "a"))
    assert "heim" not in repr(Broker([url], password="geheim"))
