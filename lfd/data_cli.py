"""lfd-train's commands about what is learnt from: look at a data set, and fetch public weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lfd.console import Command, guarded
from lfd.errors import UsageError, require


@click.command("check-data", cls=Command)
@click.argument("data", metavar="NAME:PATH[@SPLIT]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write a contact sheet there."
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Pictures read at a time; not for films.  [default: one a processor]"
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call wrote to DIR.")
@guarded
def check_data_command(data: str, as_json: bool, out: Path | None, workers: int | None, overwrite: bool) -> None:
    """Read a data set once and say what it holds: pictures, sizes, classes, and what is broken or missing.

    Ends with 1 where a picture is broken, or the train or val split cannot be opened.
    """
    require("cv2", "train")
    require("rich", "train")
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from lfd.data_check import REPORT_FILE, SHEET_FILE, check_data, check_out, write_findings  # noqa: PLC0415
    from lfd.data_report import render  # noqa: PLC0415
    from lfd.files import to_json  # noqa: PLC0415

    if out is not None:
        check_out(out, overwrite)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bars.add_task(split, total=total)
            bars.update(tasks[split], completed=done)

        found = check_data(data, workers, show)
    report = found.report
    click.echo(to_json(report.to_record()) if as_json else render(report), nl=not as_json)
    try:
        if out is not None:
            write_findings(found, out)
            if not as_json:
                click.echo(f"written  {out}: {SHEET_FILE}, {REPORT_FILE}")
    finally:  # what was found is told, if it cannot be written too
        for failure in report.failures:
            click.echo(f"error: {failure}", err=True)
    if report.failures:
        sys.exit(1)


@click.command("fetch", cls=Command)
@click.argument("what", metavar="[NAME|URL|FILE]", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the catalogue.")
@click.option("--out", "-o", default="", metavar="FILE|DIR", help="Where to.  [default: torch's cache, or here]")
@click.option("--sha256", default="", metavar="HEX", help="What its SHA-256 must be.")
@click.option("--overwrite", is_flag=True, help="Replace another file of that name.")
@guarded
def fetch_checkpoint(what: str | None, listing: bool, out: str, sha256: str, overwrite: bool) -> None:
    """Fetch public weights by name or address, resumed and verified; or verify a file and say what it is."""
    from lfd.fetch import fetch, table  # noqa: PLC0415

    if listing == bool(what):
        raise UsageError("expected a name, an address or a file, or --list alone. Fix: lfd-train fetch --list")
    if what is None:
        click.echo("\n".join(table()))
        return
    click.echo("\n".join(fetch(what, out, sha256, overwrite, sys.stderr).lines()))
