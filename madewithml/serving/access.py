"""Who may come in: the key of a request, what it opens, and how much it may send.

    Access.admit(scope) -> the caller, or 401 / 403 / 429 before anything of the body is read

Without keys there is nothing to check, and nothing is: a service on loopback, or one that was told to let anyone in.
A file of keys is looked at again once a second, so that a new or revoked key needs no restart.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

from madewithml import config, errors, keys
from madewithml.serving import rate_limit

logger = logging.getLogger(__name__)

# Without a key: what says whether the service is up, and how to call it.
OPEN = frozenset(
    {
        *("/", "/ping", "/health", "/version", "/health/live", "/health/ready"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
        *("/docs", "/docs/oauth2-redirect", "/openapi.json"),
    }
)
ADMIN = frozenset({("POST", "/evaluate"), ("GET", "/shadow"), ("GET", "/feedback")})
LOOK_EVERY_S = 1.0
ANONYMOUS = "anonymous"
CALLER = "madewithml.caller"  # in a request's scope


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: Of the key; "anonymous" without one.
        role: What it opens.
        bucket: What it may send; None for no limit.
    """

    name: str
    role: keys.Role
    bucket: rate_limit.Bucket | None = None


class Access:
    """The keys of a service.

    Args:
        settings: Keys, their file, and whether callers without a key are let in.
        sharers: Processes that share the calls: each grants its share of a key's rate.
    """

    def __init__(self, settings: config.Settings, *, sharers: int = 1) -> None:
        self._given = settings.keys
        self._path = settings.keys_path
        self._sharers = sharers
        self._anonymous = Caller(ANONYMOUS, "predict") if settings.allow_anonymous else None
        # By the whole key: a name may stand for one key in the settings and for another in the file.
        self._callers: dict[keys.Key, Caller] = {}
        self._looked = time.monotonic()
        self._stamp = _stamp(self._path)
        self._read()
        # Decided once: that the last key was revoked must not open the door.
        self.required = bool(self._callers) or not settings.is_on_loopback

    def admit(self, scope: MutableMapping[str, Any]) -> None:
        """Let a request in, and note in its scope who sent it.

        Raises:
            UnauthorizedError: It has no key where one is needed, or one that is not known.
            ForbiddenError: Its key does not open this route.
            RateLimitedError: Its key has sent too much.
        """
        if not self.required:
            return
        secret = _secret(scope["headers"])
        path = scope["path"].rstrip("/") or "/"
        if secret is None and path in OPEN:
            return
        caller = self._caller(secret)
        if (scope["method"], path) in ADMIN and caller.role != "admin":
            raise errors.ForbiddenError(f"{path} needs a key with the role admin; this one has {caller.role}")
        if caller.bucket is not None and path not in OPEN:
            wait_s = caller.bucket.take()
            if wait_s:
                msg = f"key {caller.name!r} has sent as many rows as it may: try again later"
                raise errors.RateLimitedError(msg, retry_after_s=wait_s)
        scope[CALLER] = caller

    def _caller(self, secret: str | None) -> Caller:
        if secret is None:
            if self._anonymous is not None:
                return self._anonymous
            msg = "a key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise errors.UnauthorizedError(msg)
        self._look()
        key = keys.find(self._callers, secret)
        if key is None:
            raise errors.UnauthorizedError("this key is not known: it was mistyped, or revoked")
        return self._callers[key]

    def _look(self) -> None:
        """Read the file of keys again if it has changed; one that cannot be read changes nothing."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read()
        except errors.UsageError as err:
            logger.error("the keys stay as they are: %s", err.message)

    def _read(self) -> None:
        found = (*self._given, *(keys.read(self._path) if self._stamp else ()))
        self._callers = {key: self._callers.get(key) or self._caller_with(key) for key in found}

    def _caller_with(self, key: keys.Key) -> Caller:
        rate = key.rows_per_second
        return Caller(key.name, key.role, rate_limit.Bucket(rate / self._sharers) if rate is not None else None)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request carries; None if it carries none.

    Raises:
        UnauthorizedError: It has an Authorization header of another kind.
    """
    found = None
    for name, value in headers:
        if name == b"authorization":
            kind, _, secret = value.decode("latin-1").partition(" ")
            if kind.lower() != "bearer" or not secret.strip():
                raise errors.UnauthorizedError("the Authorization header is not of the form 'Bearer KEY'")
            return secret.strip()
        if name == b"x-api-key":
            found = value.decode("latin-1").strip()
    return found


def caller_name(scope: MutableMapping[str, Any]) -> str:
    """Whose key a request came with; "anonymous" without one."""
    caller: Caller | None = scope.get(CALLER)
    return caller.name if caller is not None else ANONYMOUS


def charge(scope: MutableMapping[str, Any], rows: int) -> None:
    """Count the rows of a call that was let in; one was counted when it came."""
    caller: Caller | None = scope.get(CALLER)
    if caller is not None and caller.bucket is not None:
        caller.bucket.charge(rows - 1)
