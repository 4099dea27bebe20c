"""Requests to S3: the client, its time limits and retries, and the error messages.

A transient fault (a 5xx or throttled response; a connection that is refused, cut or silent; a body that ends early) is
retried, up to `MAX_ATTEMPTS` attempts, after a random share of 0.25, 0.5, 1, 2, 4 s: at most 8 s of waiting, plus at
most `CONNECT_TIMEOUT_S` or `READ_TIMEOUT_S` of silence in each attempt. A store that has not yet answered this process
is given up after `FIRST_ANSWER_S`: its address may be wrong. botocore's own retries are off: they do not cover the body
of a response. Any other fault, and one that persists, is a ServiceError that says what to do.
Credentials, region, endpoint and profile are boto3's own (AWS_ENDPOINT_URL, AWS_PROFILE, ...). boto3 is imported at the
first request (0.3 s), not with this module.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from registry.errors import DamagedError, ServiceError, UsageError

MAX_ATTEMPTS = 6
BASE_DELAY_S = 0.25
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
FIRST_ANSWER_S = 12.0

T = TypeVar("T")

_answered: set[tuple[int, str | None]] = set()
"""Process and endpoint of the stores that have answered."""

_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"}
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it, or name another",
    "NotImplemented": "this store has no conditional writes (If-Match, If-None-Match), which a commit needs",
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "InvalidAccessKeyId": "the store does not know these credentials: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the credentials are wrong: check AWS_SECRET_ACCESS_KEY and the endpoint",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "InvalidObjectState": "it is archived: restore it to a storage class that can be read",
    "EntityTooLarge": "the store does not accept an object of this size",
}


class Precondition(Exception):  # noqa: N818 - a result that the caller expects
    """The condition of a request (If-Match, If-None-Match) does not hold."""


def client() -> Any:
    """Return the process's S3 client.

    Raises:
        UsageError: boto3 is not installed.
        ServiceError: its configuration cannot be used.
    """
    process, endpoint = _store()
    return _client(process, endpoint, os.environ.get("AWS_PROFILE"), (process, endpoint) in _answered)


def _store() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("AWS_ENDPOINT_URL")


@functools.lru_cache(maxsize=8)
def _client(_process: int, _endpoint: str | None, _profile: str | None, has_answered: bool) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UsageError("s3:// needs boto3; run pip install 'nulls[s3]'") from None
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S if has_answered else min(CONNECT_TIMEOUT_S, FIRST_ANSWER_S / 3),
        read_timeout=READ_TIMEOUT_S if has_answered else min(READ_TIMEOUT_S, FIRST_ANSWER_S / 2),
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=16,
        tcp_keepalive=True,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise ServiceError(f"S3 cannot be used: {error}; check AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL") from error


def request(path: object, operation: str, **arguments: Any) -> dict[str, Any]:
    """Call an operation of the client for `path`, with retries. The errors are those of `retried`."""
    call = getattr(client(), operation)
    response: dict[str, Any] = retried(path, lambda: call(**arguments))
    return response


def retried(path: object, attempt: Callable[[], T]) -> T:
    """Call `attempt` until it succeeds or its error is not transient, and return its result.

    Args:
        path: the object or bucket concerned, for messages.
        attempt: raises botocore's errors, or EOFError for a body that is too short.

    Raises:
        FileNotFoundError: there is no such object.
        Precondition: the condition of the request does not hold.
        ServiceError: any other error; the message says what to do.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    end = time.monotonic() + FIRST_ANSWER_S
    for attempts in range(1, MAX_ATTEMPTS + 1):
        try:
            result = attempt()
            _answered.add(_store())
            return result
        except ClientError as error:
            _answered.add(_store())
            if not _is_transient(error.response) or attempts == MAX_ATTEMPTS:
                raise _translated(path, error.response, str(error)) from error
        except (BotoCoreError, ResponseParserError, EOFError) as error:
            if not _is_network_error(error):
                raise ServiceError(f"{path}: {error}; check the AWS_* settings and the profile") from error
            if attempts == MAX_ATTEMPTS or (_store() not in _answered and time.monotonic() > end):
                raise ServiceError(
                    f"{path}: no complete response in {attempts} attempts ({error}); check the network and "
                    "AWS_ENDPOINT_URL, then run the same command again"
                ) from error
        time.sleep(random.uniform(0, BASE_DELAY_S * 2 ** (attempts - 1)))
    raise AssertionError("the last attempt returns or raises")


def changed(path: object) -> DamagedError:
    """Return the error for an object that was replaced while it was read."""
    return DamagedError(f"{path}: was replaced while it was read; run the same command again")


def _status(response: dict[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(response: dict[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _is_transient(response: dict[str, Any]) -> bool:
    status = _status(response)
    is_conflict = status == 409 and _code(response) in ("ConditionalRequestConflict", "OperationAborted")
    return (status >= 500 and status != 501) or status == 429 or is_conflict or _code(response) in _TRANSIENT_CODES


def _is_network_error(error: Exception) -> bool:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    network_errors = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        ResponseParserError,
        EOFError,
    )
    return isinstance(error, network_errors)


def _translated(path: object, response: dict[str, Any], message: str) -> Exception:
    status, code = _status(response), _code(response)
    if status == 412:
        return Precondition(str(path))
    if status == 404 and code != "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "no such object", str(path))
    advice = _ADVICE.get(code)
    if advice is None and status == 403:
        advice = "access is denied: check the credentials, and that they may list, read and write there"
    if advice is None and status in (301, 307):
        advice = _ADVICE["PermanentRedirect"]
    if advice is None and status >= 500:
        advice = f"the store failed {MAX_ATTEMPTS} times: run the same command again when it has recovered"
    return ServiceError(f"{path}: {message}; {advice or 'see the message of the store'}")
