"""Who may do what: bearer keys of 256 random bits, kept as their SHA-256, with a scope; and how much each may ask for.

On loopback nobody needs a key, unless a proxy stands before the service: what it forwards may come from anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from service.errors import Finding, Problem
from service.settings import Limits, is_loopback
from service.store import Store, now

SCOPES = ("read", "write", "admin")
"""Each may do what those before it may."""
KEY = re.compile(r"sg_[A-Za-z0-9_-]{43}")
_WINDOW = 60  # seconds
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")

ACCESS: Mapping[str, str | None] = {
    **dict.fromkeys(("live", "ready", "home", "docs"), None),
    **dict.fromkeys(("evaluate", "verify", "tolerance", "truth", "thresholds", "metrics"), "read"),
    **dict.fromkeys((f"list_{kind}" for kind in ("ops", "variants", "formats", "summations", "inputs", "policies")), "read"),
    **dict.fromkeys(("list_projects", "list_runs", "read_run", "list_baselines", "read_baseline", "read_report"), "read"),
    **dict.fromkeys(("read_history", "read_badge", "projects", "project"), "read"),
    **dict.fromkeys(("add_run", "check", "move_baseline", "compare"), "write"),
    **dict.fromkeys(("list_keys", "add_key", "revoke_key"), "admin"),
}
"""What each route needs, by operationId, pages by name; None: nothing. What is not listed needs admin."""
PAGES = ("projects", "project")
"""They take the key as the password of HTTP Basic too, which browsers ask for."""


@dataclass(frozen=True)
class Holder:
    """Who asks. id: of the key, or loopback; name: as it was given; limited: whether its budgets count."""

    id: str
    name: str
    limited: bool


LOOPBACK = Holder("loopback", "loopback", False)


def new_key(name: str, scope: str, days: float | None = None, key: str | None = None) -> tuple[str, dict[str, Any]]:
    """A key, which is told once, and the row that is kept of it. days: until it expires. Raises ValueError."""
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope[:64]!r}; known: {', '.join(SCOPES)}")
    key = key or f"sg_{secrets.token_urlsafe(32)}"
    if not KEY.fullmatch(key):
        raise ValueError("a key is sg_ and 43 characters of base64url; `softgauge keys new` prints one")
    hashed = _hashed(key)
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return key, {"id": hashed[:12], "name": name, "hash": hashed, "scope": scope, "at": now(), "expires": expires}


def _hashed(key: str) -> str:
    """What is kept of a key. It has 256 bits of chance, so that there is nothing to guess, and no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def active(row: Mapping[str, Any], at: str) -> bool:
    """Whether a key counts."""
    return row["revoked"] is None and (row["expires"] is None or row["expires"] > at)


async def authorise(request: Request) -> None:
    """Lets a request through, and says in its state who asks. Raises Problem."""
    route = request.scope["route"]
    name = getattr(route, "operation_id", None) or route.name
    needed = ACCESS.get(name, "admin")
    state = request.app.state
    holder, scope = LOOPBACK, "admin"
    if needed is None:
        return
    if "authorization" in request.headers or not _is_near(request.headers, state.settings.host):
        holder, scope = await _holder(request.headers, state.store, name in PAGES)
    if SCOPES.index(scope) < SCOPES.index(needed):
        detail = f"this needs a key of scope {needed}, and this one is of scope {scope}"
        raise Problem("forbidden", detail, (Finding("Authorization", detail),))
    request.scope["state"]["holder"] = holder
    if holder.limited:
        request.scope["state"]["budgets"] = budgets = state.budgets.of(holder.id)
        budgets.take()


def _is_near(headers: Headers, host: str) -> bool:
    """Whether it can only come from this machine."""
    return is_loopback(host) and not any(name in headers for name in _FORWARDED)


async def _holder(headers: Headers, store: Store, is_page: bool) -> tuple[Holder, str]:
    """Who has the key of a request, and its scope. Raises Problem."""
    ways = {"WWW-Authenticate": 'Basic realm="Softgauge: any name, and a key as the password"' if is_page else "Bearer"}
    key = _key(headers.get("authorization", ""), is_page)
    if key is None:
        detail = "this needs a key: Authorization: Bearer sg_...; `softgauge keys create` makes one"
        raise Problem("unauthorized", detail, (Finding("Authorization", detail),), ways)
    row = await asyncio.to_thread(store.key, _hashed(key)) if KEY.fullmatch(key) else None
    if row is None or not active(row, now()):
        said = "is not known" if row is None else "was revoked" if row["revoked"] else f"expired at {row['expires']}"
        detail = f"the key {said}; `softgauge keys create` makes a new one"
        raise Problem("unauthorized", detail, (Finding("Authorization", detail),), ways)
    return Holder(row["id"], row["name"], True), row["scope"]


def _key(given: str, is_page: bool) -> str | None:
    kind, _, rest = given.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic" and is_page:
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


# ---- budgets ----------------------------------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """A budget that fills up steadily. level: what is left, below zero where more was spent; at: when that was so."""

    level: float
    at: float

    def fill(self, most: float, time_now: float) -> None:
        """Until now."""
        self.level = min(most, self.level + (time_now - self.at) * most / _WINDOW)
        self.at = time_now


@dataclass
class Of:
    """The budgets of one holder: requests, and seconds of computing, which are known when they are spent."""

    limits: Limits
    requests: Bucket
    seconds: Bucket

    def take(self) -> None:
        """Take one request. Raises Problem where a budget is spent."""
        limits, clock = self.limits, time.monotonic()
        self.requests.fill(limits.rate_requests, clock)
        self.seconds.fill(limits.rate_seconds, clock)
        for name, bucket, least, most in (
            ("rate_requests", self.requests, 1.0, limits.rate_requests),
            ("rate_seconds", self.seconds, 0.0, limits.rate_seconds),
        ):
            if bucket.level < least:
                wait = max(1, math.ceil((least - bucket.level) * _WINDOW / most))
                unit = "requests" if name == "rate_requests" else "seconds of computing"
                detail = f"this key has spent its {name} = {most:g} {unit} in {_WINDOW} s; wait {wait} s"
                raise Problem("too-many-requests", detail, headers={"Retry-After": str(wait)})
        self.requests.level -= 1.0

    def spend(self, seconds: float) -> None:
        """Count what was computed."""
        self.seconds.level -= seconds

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10): r, what is left; t, seconds until whole."""
        rows = (("requests", self.requests, self.limits.rate_requests), ("seconds", self.seconds, self.limits.rate_seconds))
        policy = ", ".join(f'"{name}";q={int(most)};w={_WINDOW}' for name, _, most in rows)
        left = ", ".join(
            f'"{name}";r={max(0, int(bucket.level))};t={max(0, math.ceil((most - bucket.level) * _WINDOW / most))}'
            for name, bucket, most in rows
        )
        yield b"ratelimit-policy", policy.encode()
        yield b"ratelimit", left.encode()


@dataclass
class Budgets:
    """The budgets of all holders of keys. They begin anew with the service."""

    limits: Limits
    known: dict[str, Of] = field(default_factory=dict)

    def of(self, holder: str) -> Of:
        """Those of one holder."""
        if holder not in self.known:
            clock = time.monotonic()
            self.known[holder] = Of(self.limits, Bucket(self.limits.rate_requests, clock), Bucket(self.limits.rate_seconds, clock))
        return self.known[holder]


def admit_first_key(store: Store, key: str) -> None:
    """Keep the key that an operator gave, of scope admin. Raises ValueError, StoreError."""
    _, row = new_key("first", "admin", key=key)
    store.add_key(row)


def has_keys(store: Store) -> bool:
    """Whether anybody could come in. Raises StoreError."""
    at = now()
    return any(active(row, at) for row in store.listed_keys())
