"""What can go wrong between here and S3, and what is done about it: the one place for time limits, retries and words.

A fault that may pass (a 5xx or a throttled answer; a connection that is refused, cut or silent; a body that ends early)
is tried again, `MAX_ATTEMPTS` times in all, after a random share of 0.25, 0.5, 1, 2, 4 s: at most 8 s of waiting,
beside `CONNECT_TIMEOUT_S` or `READ_TIMEOUT_S` of silence an attempt at most. botocore's own retries are off: they do
not reach the body of an answer. Anything else, and what does not pass, is a ServiceError that says what to do.
Credentials, region, endpoint and profile are boto3's own (AWS_ENDPOINT_URL, AWS_PROFILE, ...). boto3 is imported when
the first object is asked for (0.3 s), not with this module.
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

T = TypeVar("T")

_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"}
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: make it, or name another",
    "NotImplemented": "this store has no conditional writes (If-Match, If-None-Match), which a commit needs",
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "InvalidAccessKeyId": "the store does not know these credentials: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the credentials are wrong: check AWS_SECRET_ACCESS_KEY and the endpoint",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "InvalidObjectState": "it is archived: restore it to a class that can be read",
    "EntityTooLarge": "the store does not take an object of this size",
}


class Precondition(Exception):  # noqa: N818 - an answer, which whoever set the condition expects
    """The condition of a request (If-Match, If-None-Match) does not hold."""


def client() -> Any:
    """The process's S3 client.

    Raises:
        UsageError: boto3 is not installed.
        ServiceError: its configuration cannot be used.
    """
    return _client(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_PROFILE"))


@functools.lru_cache(maxsize=4)
def _client(_process: int, _endpoint: str | None, _profile: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UsageError("s3:// needs boto3; run pip install 'nulls[s3]'") from None
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=16,
        tcp_keepalive=True,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise ServiceError(f"S3 cannot be used: {error}; check AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL") from error


def request(place: object, operation: str, **arguments: Any) -> dict[str, Any]:
    """One operation of the client on `place`, tried again as above. Its errors are those of `retried`."""
    call = getattr(client(), operation)
    answer: dict[str, Any] = retried(place, lambda: call(**arguments))
    return answer


def retried(place: object, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, which is called again while its error may pass.

    Args:
        place: what it is about, for messages.
        attempt: raises what botocore does, or EOFError for a body that is too short.

    Raises:
        FileNotFoundError: there is no such object.
        Precondition: a condition that the request set does not hold.
        ServiceError: all else, in words.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return attempt()
        except ClientError as error:
            if not _may_pass(error.response) or number == MAX_ATTEMPTS:
                raise _translated(place, error.response, str(error)) from error
        except (BotoCoreError, ResponseParserError, EOFError) as error:
            if not _is_of_the_network(error):
                raise ServiceError(f"{place}: {error}; check the AWS_* settings and the profile") from error
            if number == MAX_ATTEMPTS:
                raise ServiceError(
                    f"{place}: no whole answer in {number} attempts ({error}); check the network and "
                    "AWS_ENDPOINT_URL, then run the same command again"
                ) from error
        time.sleep(random.uniform(0, BASE_DELAY_S * 2 ** (number - 1)))
    raise AssertionError("the last attempt returns or raises")


def changed(place: object) -> DamagedError:
    """The error of an object that became another while it was read."""
    return DamagedError(f"{place}: was replaced while it was read; run the same command again")


def _status(response: dict[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(response: dict[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _may_pass(response: dict[str, Any]) -> bool:
    status = _status(response)
    is_conflict = status == 409 and _code(response) in ("ConditionalRequestConflict", "OperationAborted")
    return (status >= 500 and status != 501) or status == 429 or is_conflict or _code(response) in _PASSING_CODES


def _is_of_the_network(error: Exception) -> bool:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    passing = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        ResponseParserError,
        EOFError,
    )
    return isinstance(error, passing)


def _translated(place: object, response: dict[str, Any], words: str) -> Exception:
    status, code = _status(response), _code(response)
    if status == 412:
        return Precondition(str(place))
    if status == 404 and code != "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "no such object", str(place))
    advice = _ADVICE.get(code)
    if advice is None and status == 403:
        advice = "access is denied: check the credentials, and that they may list, read and write there"
    if advice is None and status in (301, 307):
        advice = _ADVICE["PermanentRedirect"]
    if advice is None and status >= 500:
        advice = f"the store failed {MAX_ATTEMPTS} times: run the same command again when it is well"
    return ServiceError(f"{place}: {words}; {advice or 'see the message of the store'}")
