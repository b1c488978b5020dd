"""Secrets in free text: log records, exceptions, URLs, header lines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flask_ctl.dispatch.redaction import masked_text

# Each text has "hunter2", the secret, and more that stays.
MASKED = {
    "password=hunter2": "password=***",
    "DB_PASSWORD = hunter2 # set": "DB_PASSWORD = *** # set",
    "apiKey: hunter2\nuser: bob": "apiKey: ***\nuser: bob",
    "if password == 'hunter2':": "if password == ***:",
    "login(password=hunter2, user=bob)": "login(password=***, user=bob)",
    "dbpass=hunter2 DBPASS: bob": "dbpass=*** DBPASS: ***",
    "PGPASS=hunter2 bob": "PGPASS=*** bob",
    "pw=hunter2 bob": "pw=*** bob",
    "pass=hunter2;user=bob": "pass=***;user=bob",
    'password=ab"hunter2 bob': "password=*** bob",
    "auth=Token('hunter2', ttl=(1, ')')) user=bob": "auth=*** user=bob",
    "password = 'hunter2": "password = ***",
    'token = """a"hunter2""" # bob': "token = *** # bob",
    # URLs
    "/x?a=1&access_token=hunter2&user=bob#end": "/x?a=1&access_token=***&user=bob#end",
    '"GET /x?token=hunter2 HTTP/1.1" 200': '"GET /x?token=*** HTTP/1.1" 200',
    "/x?user[password]=hunter2&user[name]=bob": "/x?user[password]=***&user[name]=bob",
    "/x?next=%2Fy%3Ftoken%3Dhunter2&user=bob": "/x?next=%2Fy%3Ftoken%3D***&user=bob",
    "postgresql://bob:hunter2@db:5432/shop": "postgresql://***@db:5432/shop",
    "https://bob:hunter2@x@db/?a=1": "https://***@db/?a=1",
    "postgres://bob:pa/hunter2@db:5432/shop": "postgres://***@db:5432/shop",
    "redis://:p#hunter2@db": "redis://***@db",
    "amqp://bob:a?<hunter2@db, amqp://x": "amqp://***@db, amqp://x",
    "/x?jwt=eyJhunter2&user=bob": "/x?jwt=***&user=bob",
    "/x?user=bob&sig=hunter2": "/x?user=bob&sig=***",
    # XML, YAML, arrows
    "<user>bob</user><password>hunter2</password><x/>": "<user>bob</user><password>***</password><x/>",
    "<ns:Password>\n  hunter2 b\n</ns:Password>": "<ns:Password>\n  ***\n</ns:Password>",
    "password:\n  hunter2\nuser: bob": "password:\n  ***\nuser: bob",
    "api_key -> hunter2, bob": "api_key -> ***, bob",
    "api_key->hunter2 bob": "api_key->*** bob",
    # JSON, and what Python prints
    '{"token": "a\\"hunter2", "user": "bob"}': '{"token": ***, "user": "bob"}',
    '{"pin":hunter2,"user":"bob"}': '{"pin":***,"user":"bob"}',
    "{'password': 'hun\\'hunter2', 'user': 'bob'}": "{'password': ***, 'user': 'bob'}",
    "{b'password': b'hunter2', 'user': 'bob'}": "{b'password': ***, 'user': 'bob'}",
    "{'credentials': {'a': ['hunter2)'], 'b': 2}, 'user': 1}": "{'credentials': ***, 'user': 1}",
    "{'password':\n 'hunter2',\n 'user': 'bob'}": "{'password':\n ***,\n 'user': 'bob'}",
    r'{"body": "{\"token\": \"hunter2\", \"user\": 1}"}': r'{"body": "{\"token\": ***, \"user\": 1}"}',
    "[('Authorization', 'Bearer hunter2'), ('Host', 'x')]": "[('Authorization', ***), ('Host', 'x')]",
    # Command lines
    "mysql --password hunter2 -u bob": "mysql --password *** -u bob",
    "['mysql', '--password', 'hunter2', '-u', 'bob']": "['mysql', '--password', ***, '-u', 'bob']",
    # Header lines, to their end
    "Authorization: Bearer hunter2\nHost: x": "Authorization: ***\nHost: x",
    "authorization: Basic hunter2 ==\r\nHost: x": "authorization: ***\r\nHost: x",
    "Proxy-Authorization: Basic hunter2": "Proxy-Authorization: ***",
    'Cookie: a="b"; sid=hunter2\r\nHost: x': "Cookie: ***\r\nHost: x",
    "Set-Cookie: sid=hunter2; Path=/": "Set-Cookie: ***",
    "HTTP_COOKIE=a=b; sid=hunter2": "HTTP_COOKIE=***",
    "X-Api-Key: hunter2": "X-Api-Key: ***",
    "token=Bearer hunter2 of bob": "token=*** of bob",
    "sent Bearer hunter2, got 401": "sent Bearer ***, got 401",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----": (
        "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----"
    ),
    "\u0130 password=hunter2": "\u0130 password=***",
    # Well-known forms, whatever stands before them
    "paid by sk_live_51Habcdefghunter2 of bob": "paid by sk_live_*** of bob",
    "push ghp_abcdefghijklhunter2, bob": "push ghp_***, bob",
    "github_pat_11ABCDEFG0123hunter2_x bob": "github_pat_*** bob",
    "glpat-abcd-efghijkhunter2 bob": "glpat-*** bob",
    "xoxb-123456789012-hunter2-x bob": "xoxb-*** bob",
    "AWS=AKIAIOSFODNN7EXAMPLhunter2 bob": "AWS=AKIA*** bob",
    "AIzaSyA1234567890hunter2-_ bob": "AIza*** bob",
    "SG.abcdefghijklm.hunter2_ bob": "SG.*** bob",
    "sk-proj-abcdefghijklhunter2-x bob": "sk-proj-*** bob",
    "sk-abcdefghijklmnophunter2 bob": "sk-*** bob",
    "/verify/eyJhbGciOiJIUzI1NiJ9.eyJzdWIhunter2.abc_def-ghi bob": "/verify/eyJ*** bob",
    "https://hooks.slack.com/services/T0/B0/hunter2 bob": "https://hooks.slack.com/services/*** bob",
    "https://discord.com/api/webhooks/1/hunter2-x bob": "https://discord.com/api/webhooks/*** bob",
    "https://api.telegram.org/bot110:AAhunter2-x/send bob": "https://api.telegram.org/bot***/send bob",
}

KEPT = [
    "tokens=512 tokenizer",
    "max_tokens: 512, tokenizer=fast",
    "the password of bob is wrong",
    "--verbose the token",
    "KeyError: 'user'",
    "jwt.InvalidTokenError: it has expired",
    "token=None, has_token: true",
    '{"token": null, "user": "bob"}',
    "password=",
    "author=bob, keyboard=us, keyword: x",
    "passport=1 compass=2 spin=3",
    "http://auth:5000/x refused",
    "http://host/a@b",
    "http://host:80/a, http://[::1]:80/b",
    "http://host:80/a",
    "</token> bob",
    "<class 'shop.Token'> is not JSON serializable",
    "Cookie:\r\nHost: x",
    "Cache-Control: private, max-age=0",
    'File "/srv/auth.py", line 3, in get_token',
    "password=***",
    "task-queue_abcdefghijklmnopq, sk-learn-pipelines, sk_live_, ghp_ and eyJ",
    "npm_config_registry AKIAlike AIzawa SG.1",
    "https://hooks.slack.com/services/",
]

HOSTILE = [
    "key",
    "key ",
    "key=",
    "://",
    "://a:",
    "://a:@",
    "key>",
    "<key>",
    "</key>",
    "key ->",
    "key:\n ",
    "key='",
    'key="\\',
    "key=[('",
    '"key" , ',
    "--key ",
    "bearer ",
    "-----BEGIN ",
    "key=\n",
    " ",
    "sk_live_",
    "-eyJ",
    "xoxb- ",
    "AKIA ",
    "hooks.slack.com/services/",
    "sk-proj-.",
]


@pytest.mark.parametrize("text", MASKED)
def test_a_secret_in_a_text_is_masked_and_the_rest_is_kept(text: str) -> None:
    assert masked_text(text) == MASKED[text]


@pytest.mark.parametrize("text", KEPT)
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert masked_text(text) == text


@pytest.mark.parametrize("text", MASKED)
@pytest.mark.parametrize(
    "around", ["bob said: {} and left", "'{}'", '{{"message": "{}"}}', "a\n{}\nb", "[{}]", "x; {} ; y"]
)
def test_a_secret_is_masked_whatever_stands_around_it(text: str, around: str) -> None:
    assert "hunter2" not in masked_text(around.format(text))


@pytest.mark.parametrize("text", MASKED)
def test_a_secret_is_masked_in_a_text_that_has_been_cut_anywhere(text: str) -> None:
    for length in range(text.index("hunter2") + len("hunter2"), len(text)):
        assert "hunter2" not in masked_text(text[:length])


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_text_of_a_quarter_of_a_mebibyte_is_masked(pattern: str) -> None:
    text = pattern * (2**18 // len(pattern))
    assert "hunter2" not in masked_text(f"{text}\npassword=hunter2")


def test_nothing_is_compiled_before_the_first_text() -> None:
    program = "import flask_ctl.dispatch.redaction as r; print(r._patterns.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0\n"
