"""`course engines`: environments of their own for libraries whose pins clash with the course's.

As in `authoring.cli`, a subcommand's docstring is its help text: one line.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Install and call engines in environments of their own.", no_args_is_help=True)


@app.command("list")
def list_engines() -> None:
    """The engines, and which of them are installed."""
    from course_utils import engines

    for engine in engines.ENGINES.values():
        size = f", {engine.megabytes:,} MB" if engine.megabytes else ""
        state = "installed" if engines.is_installed(engine) else f"not installed{size}"
        typer.echo(f"{engine.name:18} {state:24} {engine.purpose}")


@app.command()
def install(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    python: Annotated[str | None, typer.Option(help="interpreter to build it with; else this one")] = None,
    again: Annotated[bool, typer.Option("--again", help="build it even if it is complete")] = False,
) -> None:
    """Build the environment of an engine; redone from the start if it was interrupted."""
    import sys

    from course_utils import engines
    from course_utils.errors import CourseError

    try:
        folder = engines.install(engines.find(name), python or sys.executable, again)
    except (CourseError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{name} is installed in {folder}")


@app.command("run")
def run_engine(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    request: Annotated[str, typer.Argument(help="the request as JSON, or @file")],
    timeout: Annotated[float, typer.Option(help="seconds")] = 600,
) -> None:
    """Send an engine one JSON request and print its JSON answer."""
    from course_utils import engines
    from course_utils.errors import CourseError

    try:
        answer = engines.run(name, _request(request), timeout)
    except (CourseError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if not answer:
        typer.echo(str(answer), err=True)
        raise typer.Exit(1)
    typer.echo(json.dumps(answer.values, indent=2))


def _request(given: str) -> dict[str, Any]:
    """The request that was given: JSON, or @ and the name of a file with it.

    Raises:
        ValueError: the file cannot be read, or what was given is no JSON object.
    """
    try:
        text = Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
        request = json.loads(text)
    except OSError as error:
        raise ValueError(f"the request's file {given[1:]} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request {given[:80]!r} is no JSON: {error}.") from None
    if not isinstance(request, dict):
        raise ValueError(f"the request {given[:80]!r} is no JSON object: write it as {{\"name\": value}}.")
    return request
