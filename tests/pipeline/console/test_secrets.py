"""What is hidden in an address or a message, and what stays as it is."""

import os
import sys

import pytest

from pipeline.console.secrets import error_text, shown, shown_command, shown_refused

HIDDEN = {
    "http://me@host:5000": "http://***@host:5000",
    "http://me:PASS@host/path": "http://***@host/path",
    "HTTPS://me:PASS@host": "HTTPS://***@host",
    "http://me:a%40b%2Fc@host": "http://***@host",
    "http://me:a@b@host": "http://***@host",
    "http://me:a/b@host/path": "http://***@host/path",
    "http://:PASS@host": "http://***@host",
    "http://me:PASS@[::1]:5000/a@b": "http://***@[::1]:5000/a@b",
    "postgresql+psycopg2://me:PASS@host/db?sslmode=require": "postgresql+psycopg2://***@host/db?...",
    "postgresql:///db?user=me&password=PASS": "postgresql:///db?...",
    "s3://KEY:SE/CRET@bucket/key": "s3://***@bucket/key",
    "sqlite://me:PASS@/a": "sqlite://***@/a",
    "ray://me:PASS@head:10001": "ray://***@head:10001",
    "https://host/x.tar?X-Amz-Credential=a&X-Amz-Signature=b": "https://host/x.tar?...",
    "https://host/x.tar?sv=1&sig=b#end": "https://host/x.tar?...#end",
    "https://me:PASS@host/x?token=b": "https://***@host/x?...",
    "http://me:PASS@one,http://me:PASS@two": "http://***@one,http://***@two",
    "http://proxy/http://me:PASS@host/x?sig=b": "http://proxy/http://***@host/x?...",
    "uri_http://me:PASS@host": "uri_http://***@host",
    "/key?X-Amz-Date=1&X-Amz-Signature=PASS&x=2": "/key?X-Amz-Date=1&X-Amz-Signature=***&x=2",
    "/blob?sv=1&sig=PASS": "/blob?sv=1&sig=***",
    "https://host/back#access_token=PASS": "https://host/back#access_token=***",
}
WHOLE = [
    "http://127.0.0.1:5000",
    "http://[::1]:5000/a@b",
    "http://host:5000: no answer for a@b",
    "http://host/#/compare-runs?runs=[1]&experiments=[2]",
    "sqlite:////home/a@b/what?/mlflow.db",
    "file:///home/a:b@c?d",
    "s3://bucket/key@2",
    "s3://bucket/what?",
    "/home/me:a@b/what?x=1",
    r"C:\Users\me@work\data?x=1",
    '{"a":"http://host:1","b":"x@y"}',
    "host:6379",
    "",
]

REFUSED = {
    "me:PASS@host:5000": "***",
    "//me:PASS@host": "***",
    "http:/me:PASS@host": "***",
    "s3:/KEY:PASS@bucket/key": "***",
    "http://me:PA SS@host": "***",
    "http://me:12/PASS@host": "***",
    "http://me:PASS@host/a@b": "***",
    "postgresql://me:PASS@host/db": "postgresql://***@host/db",
    "http://[::1": "http://[::1",
    "/a/folder": "/a/folder",
}
"""By address: what an error shows of it."""

GIVEN = {
    "MLFLOW_TRACKING_PASSWORD": ("hunter22", "no access for me:hunter22", "no access for me:***"),
    "MLFLOW_TRACKING_TOKEN": ("eyJh.bGci", "Bearer eyJh.bGci is not valid", "Bearer *** is not valid"),
    "AWS_SECRET_ACCESS_KEY": ("wJal/rXU+tnFEMI", "signed with 'wJal/rXU+tnFEMI'", "signed with '***'"),
    "RAY_AUTH_TOKEN": ("0123456789abcdef", "token 0123456789abcdef", "token ***"),
    "MLFLOW_TRACKING_URI": ("http://me:a%2Fbcdef@host", "no int: 'a/bcdef', a%2Fbcdef", "no int: '***', ***"),
    "http_proxy": ("http://me:hunter22@proxy", "407 for hunter22", "407 for ***"),
    "HST_DATA": ("https://host/x?k=hunter22", "retries of url: /x?k=hunter22", "retries of url: /x?***"),
}
"""By variable: what it holds, a library's message, and what is shown of that."""


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was given no secrets."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["job"])


@pytest.mark.parametrize("address", HIDDEN)
def test_a_login_and_a_query_are_hidden_once_and_in_any_text(address: str) -> None:
    assert shown(address) == shown(shown(address)) == HIDDEN[address]
    text = "Could not connect to '{}' (2 times): \"{}\""
    assert shown(text.format(address, address)) == text.format(HIDDEN[address], HIDDEN[address])


@pytest.mark.parametrize("text", WHOLE)
def test_paths_ports_and_pages_stay_as_they_are(text: str) -> None:
    assert shown(text) == text


def test_a_rotated_password_shows_the_same_place() -> None:
    assert shown("http://me:old-one@host") == shown("http://me:new-one@host")


@pytest.mark.parametrize("name", GIVEN)
def test_a_secret_that_the_process_was_given_is_hidden_without_its_address(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, text, expected = GIVEN[name]
    assert shown(text) == text
    monkeypatch.setenv(name, value)
    assert shown(text) == expected


def test_a_secret_of_the_command_line_is_hidden_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "--tracking-uri=http://me:hunter22@host"])
    assert shown("hunter22, and hunter222") == "***, and hunter222"


def test_a_short_secret_blanks_no_ordinary_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:test@host")
    assert shown("the split test of http://me:test@host") == "the split test of http://***@host"


def test_a_command_says_what_to_do_about_what_it_lacks() -> None:
    assert shown_command(["hst-registry", "--tracking-uri", "http://host:1", "list"]) == (
        "hst-registry --tracking-uri http://host:1 list"
    )
    text = shown_command(["hst-registry", "--tracking-uri=http://me:PASS@host", "list"])
    assert text.startswith("hst-registry '--tracking-uri=http://***@host' list  (")
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in text


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert error_text(ValueError("http://me:PASS@host: refused")) == "http://***@host: refused"
    assert error_text(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_name_without_a_password_is_no_secret_of_its_own_except_in_a_web_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GIT_URL", "ssh://builder@host/repository")
    assert shown("/home/builder") == "/home/builder"
    monkeypatch.setenv("GIT_URL", "https://ghp-0123@host/repository")
    assert shown("ghp-0123") == "***"


@pytest.mark.parametrize("address", REFUSED)
def test_a_refused_address_is_hidden_where_it_is_unclear_what_its_login_is(address: str) -> None:
    assert shown_refused(address) == REFUSED[address]
