"""Find the job server of a Ray cluster from any of its addresses: the dashboard, the cluster's port, or `auto`.

Ray's own lookup waits for minutes where no server answers, and may end the calling process; here it runs in a separate
process with a limit of 10 s (about 2 s where it succeeds, since that process imports Ray). A dashboard's address is
checked directly, in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from registry.connectivity import CONNECT_S, check_answers, check_listening, within
from registry.errors import ServiceError, UsageError

ADVICE = "check --ray-address and the cluster's dashboard, e.g. http://HEAD:8265"
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_FIND_S = 10.0
_IMPORT_S = 60.0  # for Python to import Ray: 2 s, and much longer on a busy machine


def is_here(session: str, environ: Mapping[str, str]) -> bool:
    """Return whether the head of a cluster is this machine, that is, whether the folder of its session exists here.

    The address cannot show it: a forwarded port of a remote cluster is on localhost too.
    """
    root = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    return bool(session) and (Path(root) / "ray" / session).is_dir()


def token_header(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the HTTP header with the user's token for a cluster, or nothing if the user has none.

    It finds the token as `ray.init` does; Ray's job client sends it only if RAY_AUTH_MODE=token was set before Ray is
    imported.

    Raises:
        UsageError: RAY_AUTH_TOKEN_PATH names no file.
    """
    if environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    token = environ.get("RAY_AUTH_TOKEN", "")
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    try:
        token = token or path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if environ.get("RAY_AUTH_TOKEN_PATH"):
            raise UsageError(f"RAY_AUTH_TOKEN_PATH: {error}; name the file of the cluster's token") from error
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def find_job_server(address: str | None) -> str:
    """Return the URL of the job server of the cluster at an address.

    Args:
        address: http://HOST:8265 (the dashboard), HOST:6379 or ray://HOST:10001 (the cluster), `auto` (one of this
            machine); None for what RAY_API_SERVER_ADDRESS or RAY_ADDRESS name, else `auto`.

    Raises:
        UsageError: it is not an address.
        ServiceError: no server answers there within about 20 s.
    """
    given = address or next((os.environ[name] for name in _ADDRESSES if os.environ.get(name)), "auto")
    scheme, mark, rest = given.rpartition("://")
    if mark and scheme not in ("http", "https", "ray"):
        raise UsageError(f"--ray-address {given}: expected http://HOST:8265, HOST:6379, ray://HOST:10001 or auto")
    if not mark and given != "auto" and not rest.rpartition(":")[2].isdecimal():
        raise UsageError(f"--ray-address {given}: no port; expected http://HOST:8265, HOST:6379 or auto")
    check_listening(given, service="Ray cluster", advice=ADVICE)
    if scheme.startswith("http") and mark:
        return _check_http(given.rstrip("/"))
    if not mark and given != "auto":
        # HOST:8265 without a scheme: Ray would take it for the port of the cluster itself, and wait.
        with contextlib.suppress(ServiceError):
            return _check_http(f"http://{given}", CONNECT_S)
    return _ask_ray(given)


def _check_http(url: str, seconds: float | None = None) -> str:
    """Return `url` if an HTTP server answers there, whatever its answer."""
    check_answers(url, "/api/version", service="Ray job server", advice=ADVICE, seconds=seconds)
    return url


def _ask_ray(address: str) -> str:
    """Find the job server of the cluster at `address` with Ray's own lookup, in a process with a time limit."""
    program = (
        "import sys; from ray.dashboard import utils; print('ready', flush=True); "
        "print(utils.get_address_for_submission_client(sys.argv[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in _ADDRESSES}
    if token_header(environment, Path.home()):
        environment["RAY_AUTH_MODE"] = "token"
    command = [sys.executable, "-c", program, address]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            within(_IMPORT_S, process.stdout.readline)  # type: ignore[union-attr]
            out, complaints = process.communicate(timeout=_FIND_S)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            process.kill()
            raise ServiceError(f"no Ray cluster answered at {address} within {_FIND_S:.0f} s; {ADVICE}") from error
    if process.returncode or not out.split():
        why = (complaints.strip().splitlines() or ["no answer"])[-1]
        raise ServiceError(f"no Ray cluster at {address}: {why}; {ADVICE}")
    return out.split()[-1]


@contextlib.contextmanager
def without_addresses() -> Iterator[None]:
    """Unset, for a while, the variables that Ray's client would follow instead of the address that it is given."""
    taken = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
