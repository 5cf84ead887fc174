"""`softgauge keys` and `softgauge projects`: what those do who keep a service, on its database, whether it runs or not."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from service.access import SCOPES, active, new_key
from service.exits import Failed, Refused
from service.settings import Settings, SettingsError
from service.store import Full, Store, StoreError, now, of

FORMAT = 1
"""Of an export."""
_LONGEST_LINE = 1 << 28  # bytes of an export's line, which holds a run at most


@contextmanager
def _store() -> Iterator[Store]:
    """The store that the environment names, of the newest schema."""
    try:
        store = of(Settings.from_environment(os.environ))
        store.open()
        try:
            yield store
        finally:
            store.close()
    except SettingsError as error:
        raise Refused(str(error)) from None
    except StoreError as error:
        raise (Failed if isinstance(error, Full) else Refused)(": ".join(filter(None, (str(error), error.reason)))) from None


def _a_number(_: click.Context, __: click.Parameter, days: float | None) -> float | None:
    if days is not None and math.isnan(days):
        raise click.BadParameter("nan is no number of days")
    return days


@click.group()
def keys() -> None:
    """Keys that let others use a service: create, list, revoke. SOFTGAUGE_DATA_DIR or SOFTGAUGE_DATABASE_URL says of which."""


@keys.command()
@click.option("--name", required=True, help="Whose it is, or what for.")
@click.option("--scope", type=click.Choice(SCOPES), default="write", show_default=True, help="What it may do.")
@click.option(
    "--days", type=click.FloatRange(0, 36_500, min_open=True), callback=_a_number, help="Until it expires.  [default: never]"
)
def create(name: str, scope: str, days: float | None) -> None:
    """Make a key. It is printed once, and kept as its SHA-256 alone."""
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise click.UsageError("--name has 1 to 100 printable characters")
    key, row = new_key(name, scope, days)
    with _store() as store:
        store.add_key(row)
    until = f"until {row['expires']}" if days else "for ever"
    click.echo(f"key {row['id']} of scope {scope}, for {name}, {until}", err=True)
    click.echo(key)


@keys.command("new")
def new() -> None:
    """Print a key that is kept nowhere, for SOFTGAUGE_ADMIN_KEY_FILE."""
    click.echo(new_key("", "admin")[0])


@keys.command("list")
def listed() -> None:
    """Every key, but not what it is."""
    at = now()
    with _store() as store:
        for row in store.listed_keys():
            state = "active" if active(row, at) else f"revoked {row['revoked']}" if row["revoked"] else "expired"
            until = f" until {row['expires']}" if row["expires"] else ""
            click.echo(f"{row['id']}  {row['scope']:5}  {state}{until}  since {row['at']}  {row['name']}")


@keys.command()
@click.argument("key", metavar="ID")
def revoke(key: str) -> None:
    """From now on a key is none; ID as `list` shows it."""
    with _store() as store:
        store.revoke(key, now())
    click.echo(f"{key} is revoked")


@click.group()
def projects() -> None:
    """Projects of a service: list, prune, export, import, remove."""


@projects.command("list")
def every() -> None:
    """Every project, its runs and its last verdict."""
    with _store() as store:
        for row in store.projects():
            click.echo(
                f"{row['name']}  {row['runs']} runs, the last {row['last'] or 'none'}  {row['verdict'] or 'not compared yet'}"
            )


@projects.command()
@click.argument("project")
@click.option("--days", type=click.FloatRange(0, 36_500), required=True, callback=_a_number, help="Runs that are older go.")
@click.option("--keep", type=click.IntRange(0), default=100, show_default=True, help="Of each branch, the newest stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def prune(project: str, days: float, keep: int, dry_run: bool) -> None:
    """Remove old runs, with their comparisons. Runs that a baseline points or pointed to stay."""
    with _store() as store:
        rows = store.prune(project, days, keep, dry_run)
        for row in rows:
            click.echo(f"{row['id']}  {row['at']}  {row['branch']}  {row['commit']}")
        files = 0 if dry_run else store.sweep()
    said = "would be removed" if dry_run else f"removed, and {files} files that nothing names any more"
    click.echo(f"{len(rows)} runs {said}")


@projects.command("export")
@click.argument("project")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def exported(project: str, file: Path) -> None:
    """Write all of a project to FILE: gzip of a line of JSON for each thing. `import` takes it on any database."""
    made = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _store() as store, gzip.GzipFile(made, "wb", mtime=0) as out:
            for kind, row in store.dump(project):
                line = {"format": FORMAT, **row} if kind == "project" else row
                out.write(json.dumps({kind: line}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        os.replace(made, file)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    finally:
        made.unlink(missing_ok=True)
    click.echo(f"{project} is in {file}")


@projects.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def imported(file: Path) -> None:
    """Keep what `export` wrote, all of it or nothing. A project of that name must not be there."""
    try:
        with _store() as store, gzip.open(file, "rb") as lines:
            name = store.load(_rows(lines))
    except (OSError, EOFError) as error:
        raise Refused(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} is no export of a project: {type(error).__name__} {error}"[:300]) from None
    click.echo(f"{name} is imported")


def _rows(lines: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    while line := lines.readline(_LONGEST_LINE):
        ((kind, row),) = json.loads(line).items()
        if kind == "project" and row.pop("format", None) != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        yield kind, row


@projects.command()
@click.argument("project")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(project: str, yes: bool) -> None:
    """Remove a project and all it has."""
    with _store() as store:
        store.branches(project)
        if not yes:
            click.confirm(f"remove {project} and all its runs?", abort=True, err=True)
        store.remove(project)
        store.sweep()
    sys.stdout.write(f"{project} is removed\n")
