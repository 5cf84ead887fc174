"""One frozen Settings, read once from the environment (prefix SOFTGAUGE_). Nothing here is created at import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

PREFIX = "SOFTGAUGE_"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class SettingsError(Exception):
    """A setting that cannot be used; the message names the variable, the value and the way out."""


@dataclass(frozen=True)
class Limits:
    """Every bound on a request. All are settings, and all are in the answer of /v1/ops. Only audit_logits may be zero."""

    max_body_bytes: int = 4 * 2**20  # JSON body
    body_seconds: float = 30.0  # until the body must be complete; of one that is no JSON
    body_bytes_per_second: int = 2**20  # that have come, each so many give it a second more
    max_receiving: int = 64  # bodies that may be on their way at once
    max_run_bytes: int = 16 * 2**20  # JSON body of a run
    rate_requests: float = 600.0  # of one key in a minute
    rate_seconds: float = 120.0  # of computing, of one key in a minute
    max_rank: int = 4
    max_binary_bytes: int = 64 * 2**20  # application/octet-stream body
    max_multipart_bytes: int = 2**30  # multipart/form-data body
    max_spooled_bytes: int = 4 * 2**30  # bodies of both kinds on disk at once
    max_elements: int = 2_000_000  # of one tensor, and of one output
    max_file_elements: int = 2**28  # of one tensor in a file or in binary
    max_response_elements: int = 100_000  # values, truth and rounded elements in one answer, all together
    max_response_digits: int = 2_000_000  # decimal digits in one answer of /v1/truth
    max_digits: int = 1000  # decimal digits of one element
    max_worst: int = 32
    max_errors: int = 20  # entries in the errors of a problem document
    max_string: int = 64  # characters of a numeric string
    max_outcomes: int = 200  # formats times variants
    max_threshold_n: int = 2**20  # logits per row in /v1/thresholds
    audit_logits: int = 4096  # of each outcome, whose truth is computed exactly once more; 0: none
    light_seconds: float = 1.0  # a request estimated to take no longer is light: it finds a process that no other takes
    estimate_seconds: float = 20.0  # a request estimated to take longer is refused
    deadline_seconds: float = 10.0  # the deadline is this, or
    deadline_factor: float = 5.0  # so many times the estimate, whichever is later
    max_waiting: int = 64  # requests that may wait for a free process
    wait_seconds: float = 5.0  # how long they may


@dataclass(frozen=True)
class Settings:
    """What the service is started with. data_dir: where it may write; bodies lie there while they are worked on."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path("data")
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)  # and one more for light requests
    worker_memory_bytes: int = 2 * 2**30  # address space of one process
    worker_requests: int = 10_000  # a process is replaced after so many requests
    worker_start_seconds: float = 60.0
    allowed_hosts: tuple[str, ...] = ()  # names beside loopback and the bound host; "*" allows any
    database_url: str = ""  # empty: SQLite in data_dir
    database_password_file: Path | None = None  # of PostgreSQL
    admin_key_file: Path | None = None  # a key of scope admin, to begin with
    limits: Limits = Limits()
    worker_command: tuple[str, ...] = (sys.executable, "-P", "-m", "service.compute")  # not read from the environment

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """The settings named by SOFTGAUGE_HOST, SOFTGAUGE_MAX_BODY_BYTES and so on. Raises SettingsError."""
        limits = replace(cls.limits, **_given(Limits(), environ))
        return replace(cls(), limits=limits, **_given(cls(), environ))

    def hosts(self) -> tuple[str, ...]:
        """The Host names that are answered, without ports, in lower case."""
        bound = f"[{self.host}]" if ":" in self.host else self.host
        return (*LOOPBACK_NAMES, bound.lower(), *(name.lower() for name in self.allowed_hosts))


def check_binding(settings: Settings, has_keys: bool) -> None:
    """Refuse to listen beyond this machine as long as there is no key. Raises SettingsError."""
    if not is_loopback(settings.host) and not has_keys:
        raise SettingsError(
            f"refusing to listen on {settings.host}: there is no key, so anybody who reaches that address could use the service. "
            f"Listen on 127.0.0.1, or make a key: softgauge keys create --name NAME --scope admin"
        )


def secret(name: str, path: Path) -> str:
    """What a file of a setting holds, without spaces around it. Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"SOFTGAUGE_{name.upper()}={str(path)!r} cannot be read: {reason}") from None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must be at least 0")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("must be a positive number")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be 0 to 65535 (0: any free one)")
    return value


def _up_to(most: int) -> Callable[[str], int]:
    """A positive integer that the engine takes: more than `most` it would refuse."""

    def read(text: str) -> int:
        value = _positive_int(text)
        if value > most:
            raise ValueError(f"must be at most {most}")
        return value

    return read


_READERS: dict[type, Callable[[str], Any]] = {int: _positive_int, float: _positive_float, str: str, Path: Path}
_SPECIAL: dict[str, Callable[[str], Any]] = {
    "port": _port,
    "database_password_file": Path,
    "admin_key_file": Path,
    "allowed_hosts": _names,
    "audit_logits": _natural,
    "max_rank": _up_to(4),
    "max_worst": _up_to(32),
    "max_threshold_n": _up_to(2**20),
    "max_digits": _up_to(4000),
}


def _given(defaults: Settings | Limits, environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields that the environment sets, converted. Raises SettingsError for a value that cannot be read."""
    found: dict[str, Any] = {}
    for row in fields(defaults):
        variable = PREFIX + row.name.upper()
        # A default's own type says how to read it; subclasses (PosixPath) count as their base.
        kind = next((kind for kind in _READERS if isinstance(getattr(defaults, row.name), kind)), None)
        reader = _SPECIAL.get(row.name) or (_READERS[kind] if kind else None)
        if reader is None or variable not in environ:
            continue
        try:
            found[row.name] = reader(environ[variable])
        except ValueError as error:
            raise SettingsError(f"{variable}={environ[variable]!r} cannot be read: {error}") from None
    return found
