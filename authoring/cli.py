"""The `course` command. Each subcommand imports what it needs, so that `course --help` is quick.

A subcommand's docstring is its help text: one line, without the sections that other functions have.
"""

from pathlib import Path
from typing import Annotated

import typer

from authoring.engines_cli import app as engines_app
from authoring.project import Project

app = typer.Typer(
    help="Generate, run, verify and grade the course's lessons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Numbers = Annotated[
    list[str] | None,
    typer.Argument(metavar="[LESSON]...", help="numbers or keys (04, gptq); all when left out"),
]


@app.callback()
def _options(
    context: typer.Context,
    root: Annotated[Path | None, typer.Option(hidden=True, help="folder of another course")] = None,
) -> None:
    """Note which course the subcommand works on."""
    context.obj = Project(root.resolve()) if root else Project()


@app.command()
def sync(
    context: typer.Context,
    lessons: Numbers = None,
    check: Annotated[bool, typer.Option("--check", help="only say what is out of step")] = False,
    force: Annotated[bool, typer.Option("--force", help="execute whether stale or not")] = False,
    run: Annotated[bool, typer.Option("--run/--no-run", help="execute what is stale")] = True,
) -> None:
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


Profile = Annotated[str | None, typer.Option(help="cpu or gpu")]
Model = Annotated[str | None, typer.Option(help="a model of the hub or a folder, not the embedded one")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...")]


def parameters(profile: str | None, lm: str | None, device: str | None) -> dict[str, str]:
    """The papermill parameters that were given.

    Args:
        profile: "cpu" or "gpu".
        lm: a model of the hub or a folder.
        device: "cpu", "cuda", ...

    Returns:
        Name of the parameter -> its value, without those that are None or empty.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in (None, "cpu", "gpu"):
        raise ValueError(f"--profile must be cpu or gpu, is {profile!r}.")
    given = {"PROFILE": profile, "LM": lm, "DEVICE": device}
    return {name: value for name, value in given.items() if value}


@app.command()
def run(
    context: typer.Context,
    lessons: Numbers = None,
    notebooks: Annotated[bool, typer.Option("--notebooks", help="your own, not solutions/")] = False,
    profile: Profile = None,
    lm: Model = None,
    device: Device = None,
    offline: Annotated[bool, typer.Option("--offline", help="let no connection leave this machine")] = False,
) -> None:
    """Run lessons end to end into runs/ and print minutes, memory and exercises passed."""
    from authoring.run import main as work

    kind = "notebooks" if notebooks else "solutions"
    given = parameters(profile, lm, device)
    raise typer.Exit(work(context.obj, lessons or (), kind=kind, parameters=given, offline=offline))


@app.command()
def verify(
    context: typer.Context,
    lessons: Numbers = None,
    profile: Profile = None,
    lm: Model = None,
    device: Device = None,
) -> None:
    """Execute solutions/ again and compare with their kept outputs, each cell within its tolerance."""
    from authoring.verify import verify as work

    raise typer.Exit(work(context.obj, lessons or (), parameters(profile, lm, device)))


@app.command()
def grade(
    context: typer.Context,
    submissions: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    csv: Annotated[Path | None, typer.Option(help="write points here")] = None,
    feedback: Annotated[Path | None, typer.Option(help="write an HTML page for each submission here")] = None,
    timeout: Annotated[int, typer.Option(help="seconds a cell may take")] = 300,
) -> None:
    """Grade submitted notebooks with nbgrader's rules, without a gradebook."""
    from authoring.grade import main as work

    raise typer.Exit(work(context.obj, submissions, csv_path=csv, feedback=feedback, timeout=timeout))


@app.command(name="list")
def list_lessons(context: typer.Context) -> None:
    """List the lessons: minutes, memory, what you measure."""
    from rich.console import Console
    from rich.table import Table

    from authoring.generate import read_lesson
    from authoring.sync import read_costs

    costs = read_costs(context.obj)
    titles = {key: part.title for part in context.obj.parts for key in part.lessons}
    table = Table("part", "number", "key", "minutes", "memory", "what you measure")
    for path in context.obj.lessons():
        lesson = read_lesson(context.obj, path)
        cost = costs.get(lesson.key)
        took = (f"{cost['minutes']:.1f}", f"{cost['peak_gb']:.1f} GB") if cost else ("-", "-")
        table.add_row(titles.get(lesson.key, ""), lesson.number, lesson.key, *took, lesson.goal)
    Console().print(table)


@app.command()
def fetch() -> None:
    """Download and convert the embedded model and the texts, train the shared classifiers; once."""
    from course_utils import data, finetune, models

    models.prepare()
    data.prepare()
    finetune.prepare()


@app.command()
def bench(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None) -> None:
    """Run side-by-side measurements and keep them in recorded/."""
    from authoring.bench import main as work

    raise typer.Exit(work(names or ()))


# Subcommands with modules of their own are added here: app.add_typer(..., name="...").
app.add_typer(engines_app, name="engines")


def main() -> None:
    """Entry point: errors that a user can mend are one line, not a traceback.

    Raises:
        SystemExit: with the exit code of the subcommand; 1 for such an error.
    """
    from course_utils.errors import CourseError

    try:
        app()
    except (ValueError, CourseError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jupytext", "nbgrader", "pytest"):
            raise
        message = f"{error}. Authors and instructors install more: pip install -e '.[author]'"
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
