"""Secrets in text: masked in every form in which libraries quote them, and nothing else masked."""

from __future__ import annotations

import pickle
import string
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import NullsError, RecordError, ServiceError
from registry.messages.masking import is_secret, masked, masked_url, secrets, secrets_of_url, without, without_login


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MLflow at http://bob:S3CRETpw@127.0.0.1:9: failed", "MLflow at http://bob:***@127.0.0.1:9: failed"),
        ("mysql://bob:S3/CRETpw@h/db", "mysql://bob:***@h/db"),
        ("mysql://bob:p@s/CR@ETpw@h/db?x=a@b", "mysql://bob:***@h/db?x=a@b"),
        ("mysql://bob:S3%2FCRETpw@h/db", "mysql://bob:***@h/db"),
        ("redis://:S3CRETpw@h", "redis://:***@h"),
        ("https://S3CRETtoken@github.com/x", "https://***@github.com/x"),
        ("bob:S3CRETpw@127.0.0.1:6379", "bob:***@127.0.0.1:6379"),
        ("'postgresql://h/db?user=b&password=S3CRETpw'", "'postgresql://h/db?user=b&password=***'"),
        ("postgresql://h/db?sslpassword=S3CRETpw); set", "postgresql://h/db?sslpassword=***); set"),
        ("host=h password='S3 CRETpw' user=bob", "host=h password=*** user=bob"),
        (
            "https://b/k?X-Amz-Credential=AK/1&X-Amz-Signature=ab",
            "https://b/k?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://b/k?a=1&sig=ab%3D&se=2", "https://b/k?a=1&sig=***&se=2"),
        ("Authorization: Bearer S3CRETpw.x", "Authorization: ***"),
        ("{'Authorization': 'Basic S3CRETpw=='}", "{'Authorization': '***'}"),
        ("sent Bearer S3CRET-1234", "sent Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=S3CRET/pw+x", "AWS_SECRET_ACCESS_KEY=***"),
        ("MLFLOW_TRACKING_PASSWORD: S3CRETpw", "MLFLOW_TRACKING_PASSWORD: ***"),
        (
            '{"env_vars": {"AWS_SECRET_ACCESS_KEY": "S3CRET\\"pw", "A": "b"}}',
            '{"env_vars": {"AWS_SECRET_ACCESS_KEY": "***", "A": "b"}}',
        ),
    ],
)
def test_secrets_are_masked_by_their_form(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/m@champion is models:/m/3",
        "https://medium.com/@user and http://host:8080/@user",
        "http://[::1]:5000/@user",
        "postgresql://bob@host/db",
        "max_new_tokens=64 tokenizer=bytes monkey=3",
        "no source 'x@y' in snapshot abc",
        "Basic authentication required; no token: expected one",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert masked(text) == text


@given(
    st.text(string.ascii_letters + string.digits + "/@:%+!$*,;~", min_size=8, max_size=20),
    st.sampled_from(["mysql", "http", "postgresql+psycopg", "s3"]),
)
def test_no_password_of_a_url_is_left_however_it_is_quoted(password: str, scheme: str) -> None:
    password = "Z" + password + "Q9"
    for spelling in (password, quote(password), quote_plus(password), quote(password, safe="")):
        url = f"{scheme}://bob:{spelling}@host:1/db"
        for text in (
            url,
            f"failed: {url}, again",
            f"({url!r}: refused)",
            f"{scheme}://host:1/db?user=b&password={spelling}",
        ):
            assert spelling not in masked(text)
        assert masked_url(url) == f"{scheme}://bob:***@host:1/db"
        for decoded in (password, spelling):
            assert decoded not in without(f"login of bob with {decoded} failed", secrets_of_url(url))


def test_only_the_login_is_masked_in_results() -> None:
    assert without_login("http://a:b@h/x?token=abc") == "http://a:***@h/x?token=abc"


def test_secrets_of_an_environment() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "longenough",
        "MLFLOW_TRACKING_URI": "http://bob:hunter22@h",
        "SHORT_TOKEN": "abc",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "GIT_AUTHOR_NAME": "Ada Lovelace",
    }
    assert set(secrets(environment)) == {"longenough", "hunter22"}
    assert is_secret("MLFLOW_TRACKING_PASSWORD")
    assert not is_secret("AWS_REGION")


def test_errors_hold_no_secret_wherever_they_go() -> None:
    error = ServiceError("http://bob:S3CRETpw@h: down")
    assert str(error) == "http://bob:***@h: down"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.args == (str(error),)
    assert RecordError("bad", "password=S3CRETpw").args == ("bad: password=***",)
    assert NullsError(3).args == (3,)
