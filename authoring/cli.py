"""The `course` command. Each subcommand imports what it needs, so that `course --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from authoring.project import Project

app = typer.Typer(
    help="Generate, run, verify and grade the course's lessons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Numbers = Annotated[list[str] | None, typer.Argument(metavar="[NN]...", help="lessons; all when left out")]


@app.callback()
def _options(
    context: typer.Context,
    root: Annotated[Path | None, typer.Option(hidden=True, help="folder of another course")] = None,
):
    context.obj = Project(root.resolve()) if root else Project()


@app.command()
def sync(
    context: typer.Context,
    lessons: Numbers = None,
    check: Annotated[bool, typer.Option("--check", help="only say what is out of step")] = False,
    force: Annotated[bool, typer.Option("--force", help="execute whether stale or not")] = False,
    run: Annotated[bool, typer.Option("--run/--no-run", help="execute what is stale")] = True,
):
    """Generate notebooks/ and solutions/ from lessons/ and execute what is stale."""
    from authoring import sync as work
    from authoring.progress import cells

    if check:
        problems = work.check(context.obj, lessons or ())
        for problem in problems:
            typer.echo(problem)
        if problems:
            raise typer.Exit(1)
        typer.echo("Everything generated is in step with lessons/.")
        return
    with cells() as progress:
        written = work.sync(
            context.obj, lessons or (), force=force, run=run, report=progress.say, on_cell=progress.cell
        )
    if not written:
        typer.echo("Nothing to do.")


def main():
    """Entry point: errors that a user can mend are one line, not a traceback."""
    from course_utils.errors import CourseError

    try:
        app()
    except (ValueError, CourseError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
