"""The `course` command. Each subcommand imports what it needs, so that `course --help` is quick.

A subcommand's docstring is its help text: one line, without the sections that other functions have.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from authoring.engines_cli import app as engines_app
from authoring.phone_cli import app as phone_app
from authoring.project import KINDS, Project

app = typer.Typer(
    help="Generate, run, verify and grade the course's lessons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DAY = 86_400  # seconds: no limit is longer

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
    from authoring.places import settle_variables

    settle_variables()
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
    from authoring.places import writable_folder
    from authoring.progress import cells

    if check:
        problems = work.check(context.obj, lessons or ())
        for problem in problems:
            typer.echo(problem)
        if problems:
            raise typer.Exit(1)
        typer.echo("Everything generated is in step with lessons/.")
        return
    for name in (*KINDS, "recorded"):  # or minutes of executing would be lost
        writable_folder(context.obj.root / name, "copy the course to a folder of your own and run it there")
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
        Name of the parameter -> its value, without those that are None or empty. A local folder is named in
        full: a notebook runs in a folder of its own.

    Raises:
        ValueError: there is no such profile or folder.
    """
    from authoring.places import model

    if profile not in (None, "cpu", "gpu"):
        raise ValueError(f"--profile must be cpu or gpu, is {profile!r}.")
    given = {"PROFILE": profile, "LM": model(lm) if lm else None, "DEVICE": device}
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
    out: Annotated[Path | None, typer.Option(help="folder for the executed notebooks; else runs/")] = None,
    dask: Annotated[str | None, typer.Option(
        help="address of a dask scheduler whose workers run them, many at a time")] = None,
) -> None:
    """Run lessons end to end into runs/ and print minutes, memory and exercises passed."""
    from authoring.run import main as work
    from authoring.work import folder

    kind = "notebooks" if notebooks else "solutions"
    own = folder(context.obj) if notebooks else None
    given = parameters(profile, lm, device)
    raise typer.Exit(work(context.obj, lessons or (), kind=kind, parameters=given, offline=offline, out=out,
                          dask=dask, own=own))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    allow_root: Annotated[bool, typer.Option("--allow-root", help="Jupyter wants root to say so")] = False,
) -> None:
    """Open JupyterLab on your own copies of the notebooks; other options are JupyterLab's (--no-browser)."""
    import os
    import sys

    from authoring import start_page, work

    folder = work.folder(context.obj)
    if made := work.copy_missing(context.obj, folder):
        typer.echo(f"{len(made)} notebooks copied into {folder}: what you write there is never overwritten.")
    if newer := work.outdated(context.obj, folder):
        typer.echo(f"Newer than your copies: {', '.join(newer)}. `course update` brings them and keeps your "
                   "answers.")
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}",
               f"--LabApp.default_url=/lab/tree/{start_page.NAME}"]
    quiet = str(Path(__file__).parent / "jupyter")  # no question about news at the first start
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [quiet, os.environ.get("JUPYTER_CONFIG_PATH", "")]))
    os.execv(sys.executable, [*command, *["--allow-root"] * allow_root, *context.args])


@app.command()
def update(context: typer.Context) -> None:
    """Bring your own copies of the notebooks to the newest lessons; your answers are kept."""
    from authoring import work

    folder = work.folder(context.obj)
    lines = list(work.update(context.obj, folder))
    made = [f"{path.stem} is new." for path in work.copy_missing(context.obj, folder)]
    typer.echo("\n".join([*lines, *made]) or f"Your copies in {folder} are of the newest lessons.")


@app.command()
def verify(
    context: typer.Context,
    lessons: Numbers = None,
    profile: Profile = None,
    lm: Model = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(
        min=1, max=1024, help="threads to compute with, to see which figures move with it")] = None,
) -> None:
    """Execute solutions/ again and compare with their kept outputs, each cell within its tolerance."""
    from authoring.verify import verify as work

    raise typer.Exit(work(context.obj, lessons or (), parameters(profile, lm, device), threads))


@app.command()
def grade(
    context: typer.Context,
    submissions: Annotated[list[Path], typer.Argument(help="notebooks, folders, zip archives")],
    lesson: Annotated[str, typer.Option(help="which lesson they are of; else each file's name says it")] = "",
    csv: Annotated[Path | None, typer.Option(help="write points here")] = None,
    csv_for: Annotated[str, typer.Option(
        help="plain; or canvas, moodle: as its gradebook imports it")] = "plain",
    results: Annotated[Path | None, typer.Option(
        help="write one JSON a submission here, at once; what stands there is not graded again")] = None,
    feedback: Annotated[Path | None, typer.Option(help="write an HTML page for each submission here")] = None,
    seed: Annotated[str, typer.Option(help="draws further cases, which no learner has seen")] = "",
    partial: Annotated[bool, typer.Option(
        "--partial", help="an answer that is right in some cases gets that share of its points")] = False,
    timeout: Annotated[float, typer.Option(
        min=1, max=DAY, help="seconds for all cases of an answer")] = 60,
    total: Annotated[float, typer.Option(
        min=1, max=DAY, help="seconds for all answers of a submission")] = 300,
    memory: Annotated[float, typer.Option(min=0.25, max=4096, help="GiB that an answer may take")] = 2,
    dask: Annotated[str, typer.Option(
        help="address of a dask scheduler whose workers grade; else one is begun here")] = "",
    here: Annotated[bool, typer.Option(
        "--here", help="grade one after the other in this process, without dask")] = False,
) -> None:
    """Grade the answers of submitted notebooks, each in a bound process of its own."""
    from authoring.grade import Rules
    from authoring.grade import main as work
    from authoring.grading.starter import Bounds
    from authoring.places import absolute, writable_file, writable_folder

    if csv_for not in ("plain", "canvas", "moodle"):
        raise ValueError(f"--csv-for must be plain, canvas or moodle, is {csv_for!r}.")
    csv = writable_file(csv, "--csv") if csv else None
    results = writable_folder(absolute(results), "name another with --results") if results else None
    feedback = writable_folder(absolute(feedback), "name another with --feedback") if feedback else None
    bounds = Bounds(seconds=timeout, total=total, memory=int(memory * 2**30))
    raise typer.Exit(work(context.obj, submissions, lesson=lesson, csv_path=csv, layout=csv_for,
                          results=results, feedback=feedback, rules=Rules(seed, partial, bounds),
                          dask=None if here else dask))


@app.command()
def similar(
    context: typer.Context,
    lesson: Annotated[str, typer.Argument(help="the lesson's key or number (gptq, 04)")],
    submissions: Annotated[list[Path], typer.Argument(help="notebooks, folders, zip archives")],
    least: Annotated[float, typer.Option(min=0.1, max=1, help="share of an answer's tokens")] = 0.8,
) -> None:
    """List answers that are alike beyond what the stub gives: to look at, not a verdict."""
    from authoring.grading.similar import main as work
    from authoring.grading.submissions import collect
    from authoring.grading.trees import assignment

    work(collect(submissions), assignment(context.obj, lesson).tasks, least)


@app.command(name="list")
def list_lessons(context: typer.Context) -> None:
    """List the lessons: your time, the machine's minutes and memory, what you measure."""
    from rich.console import Console
    from rich.table import Table

    from authoring import working_time
    from authoring.generate import read_title
    from authoring.sync import read_costs

    costs = read_costs(context.obj)
    titles = {key: part.title for part in context.obj.parts for key in part.lessons}
    table = Table("part", "number", "key", "your time", "minutes", "memory", "what you measure")
    for path in context.obj.lessons():
        lesson = read_title(context.obj, path)
        cost = costs.get(lesson.key)
        took = (f"{cost['minutes']:.1f}", f"{cost['peak_gb']:.1f} GB") if cost else ("-", "-")
        yours = working_time.of(context.obj, path)
        table.add_row(titles.get(lesson.key, ""), lesson.number, lesson.key, yours, *took, lesson.goal)
    Console().print(table)
    typer.echo(working_time.sentence(context.obj))


@app.command()
def claims(context: typer.Context) -> None:
    """Print the article's claims with the verdicts of the executed solutions; write docs/claims.md."""
    from rich.console import Console
    from rich.table import Table

    from authoring.claims import PAGE, rows
    from authoring.sync import sync_claims, sync_readme

    table = Table("claim", "the article says", "verdict", "cell")
    for claim, one in rows(context.obj):
        verdict = f"{one.verdict} ({one.part})" if one and one.part else one.verdict if one else "open"
        table.add_row(claim.id, claim.says, verdict, f"{one.stem}, {one.cell}" if one else "")
    Console().print(table)
    if not sync_claims(context.obj, typer.echo) + sync_readme(context.obj, typer.echo):
        typer.echo(f"{PAGE} is in step with the cells; it has the figures.")


@app.command(name="new-exercise")
def new_exercise(
    context: typer.Context,
    lesson: Annotated[str, typer.Argument(help="the lesson's key or number (gptq, 04)")],
    name: Annotated[str, typer.Argument(help="the function's name; of a prediction: predict_...")],
    function: Annotated[str, typer.Option(help="where the function is, package.module:function")] = "",
    predict: Annotated[bool, typer.Option("--predict", help="ask for a number to predict")] = False,
    after: Annotated[str, typer.Option(help="cell after which it comes; else before the recap")] = "",
    points: Annotated[int, typer.Option(min=0, help="what it gives")] = 1,
) -> None:
    """Write a new exercise's cell, its entry and its tests, as a skeleton to be filled in."""
    from authoring.new_exercise import new_exercise as work

    given = {"function": function, "predict": predict, "after": after, "points": points}
    typer.echo("\n".join(work(context.obj, lesson, name, **given)))


@app.command()
def mutants(
    context: typer.Context,
    lessons: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LESSON[.EXERCISE]]...", help="04, gptq, gptq.Hessian; all when left out"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="print each unexplained one as an entry")] = False,
    json: Annotated[Path | None, typer.Option(help="write the numbers and the survivors here")] = None,
) -> None:
    """Make small changes to the reference of each exercise: does its check notice every one?"""
    from authoring.mutants import main as work
    from authoring.places import writable_file

    json = writable_file(json, "--json") if json else None
    raise typer.Exit(work(context.obj, lessons or (), show=show, json_path=json))


@app.command()
def fetch(
    lazy: Annotated[bool, typer.Option(
        "--lazy", help="leave what later lessons start from to the first one that needs it")] = False,
) -> None:
    """Make what the lessons start from, once: model, texts, classifiers, the phone's file, a small model."""
    from course_utils import data, models

    models.prepare()
    data.prepare()
    if not lazy:
        from course_utils import compressed, finetune
        from course_utils.phone import export

        finetune.prepare()
        export.onnx_folder()
        export.onnx_folder(level=4)
        compressed.load("combined")


@app.command()
def bench(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None) -> None:
    """Run side-by-side measurements and keep them in recorded/."""
    from authoring.bench import main as work
    from authoring.places import writable_folder
    from course_utils import records

    writable_folder(records.FOLDER, "measure in a checkout of your own")
    raise typer.Exit(work(names or ()))


@app.command()
def site(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for sources and pages")] = Path("build/site"),
    links: Annotated[bool, typer.Option("--links", help="ask for every outside address instead")] = False,
) -> None:
    """Build the course's web site from docs/, the README and the executed lessons."""
    from authoring.places import absolute, writable_folder
    from authoring.site import build

    out = writable_folder(absolute(out), "name another with --out")
    pages = build(context.obj, out, builder="linkcheck" if links else "html")
    typer.echo(f"every outside address answers: {pages}" if links else f"site: {pages / 'index.html'}")


Texts = list[str] | None


@app.command(name="gpu-run")
def gpu_run(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for results, logs and the report")] = Path("runs/gpu"),
    device: Annotated[str, typer.Option(help="cuda; cpu rehearses")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="tiny shapes, to rehearse")] = False,
    minutes: Annotated[float, typer.Option(min=0, max=DAY / 60, help="for all steps together")] = 10,
    only: Annotated[Texts, typer.Option(metavar="STEP", help="only this step; may be repeated")] = None,
    skip: Annotated[Texts, typer.Option(metavar="STEP", help="not this step")] = None,
    limit: Annotated[Texts, typer.Option(metavar="STEP=SECONDS", help="a step's own limit")] = None,
    lesson: Annotated[Texts, typer.Option(metavar="LESSON", help="only this: its number or key")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="lessons at a time; above 1 their timings disturb")] = 1,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="go on after a failing cell")] = False,
    record: Annotated[bool, typer.Option("--record", help="copy the results into recorded/ too")] = False,
) -> None:
    """On a GPU machine: machine, lessons, comparison, 13B model, 2:4, KV caches, engines; each bounded."""
    from authoring.gpu.plan import Settings
    from authoring.gpu.run import gpu_run as work
    from authoring.places import absolute, writable_folder

    limits = {}
    for text in limit or ():
        name, _, seconds = text.partition("=")
        if not re.fullmatch("[0-9]{1,5}", seconds):
            raise ValueError(f"--limit is written STEP=SECONDS, such as lessons=200, not {text!r}.")
        limits[name] = int(seconds)
    if record:
        writable_folder(context.obj.root / "recorded", "leave --record out")
    out = writable_folder(absolute(out), "name another with --out")
    settings = Settings(str(out), str(context.obj.root), device, small, jobs, keep_going, tuple(lesson or ()))
    lines = work(settings, minutes=minutes, only=only or (), skip=skip or (), limits=limits, record=record,
                 say=typer.echo)
    typer.echo(f"report: {settings.folder / 'report.md'}")
    raise typer.Exit(int(any(line["state"] != "done" for line in lines)))


@app.command()
def bundle(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the parts")],
    python: Annotated[str | None, typer.Option(help="the target's Python, as 3.12; else this one")] = None,
    platform: Annotated[str | None, typer.Option(help="as manylinux_2_28_x86_64")] = None,
    parts: Annotated[str, typer.Option(help="size of a part")] = "60MB",
    has: Annotated[list[str] | None, typer.Option(help="packages the target has, a,b,c: not packed")] = None,
    has_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="its `pip freeze`: packed if too old")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="packages to do without, a,b,c")] = None,
    extras: Annotated[list[str] | None, typer.Option(help="extras of pyproject.toml, a,b,c")] = None,
    classifiers: Annotated[bool, typer.Option("--classifiers", help="pack the trained ones too")] = False,
) -> None:
    """Pack packages, models, texts and the course for a machine without a network."""
    from authoring import bundle as work
    from authoring.places import absolute, writable_folder

    out = absolute(out)
    writable_folder(out.parent, "name another folder with --out")
    request = work.request(python, platform, has or (), has_file, extras or (), without or (), classifiers)
    manifest = work.bundle(context.obj, request, out, work.parse_size(parts))
    typer.echo(work.summary(manifest, out))


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
def unbundle(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="FOLDER [OPTION]...")] = None,
) -> None:
    """Set up from what `course bundle` packed, without a network; `course unbundle --help` lists options."""
    from authoring.unbundle import main as work

    raise typer.Exit(work(arguments or []))


assignment = typer.Typer(help="Course folders for nbgrader.", no_args_is_help=True)


@assignment.command()
def build(
    context: typer.Context,
    lessons: Annotated[list[str], typer.Argument(metavar="LESSON...", help="numbers or keys (04, gptq)")],
    out: Annotated[Path, typer.Option(help="the course folder")],
    answers_only: Annotated[bool, typer.Option(
        "--answers-only", help="autograde runs the answers alone, as `course grade` does")] = False,
    seed: Annotated[str, typer.Option(help="as of `course grade`; with --answers-only")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="as of `course grade`")] = False,
) -> None:
    """Write a course folder that nbgrader generates, grades, reports and exports from."""
    from authoring.grading.assignment import build as work
    from authoring.places import absolute, writable_folder

    out = writable_folder(absolute(out), "name another with --out")
    for path in work(context.obj, lessons, out, answers_only=answers_only, seed=seed, partial=partial):
        typer.echo(f"wrote {path}")


# Subcommands with modules of their own are added here: app.add_typer(..., name="...").
app.add_typer(assignment, name="assignment")
app.add_typer(engines_app, name="engines")
app.add_typer(phone_app, name="phone")


def _check_copy(program: Path, prefix: Path) -> None:
    """Refuse to be the `course` of a copied folder: it begins with a path to the Python it was copied from.

    Args:
        program: as it was called.
        prefix: the environment whose Python runs.

    Raises:
        ValueError: the program stands in another environment.
    """
    environment = program.absolute().parent.parent
    if (environment / "pyvenv.cfg").is_file() and prefix.exists() and not environment.samefile(prefix):
        raise ValueError(f"{environment} was copied or moved from {prefix} and still runs what is there: "
                         f"run `make setup` in {environment.parent}.")


def main() -> None:
    """Entry point: errors that a user can mend are one line, not a traceback.

    Raises:
        SystemExit: with the exit code of the subcommand; 1 for such an error.
    """
    import sys

    from course_utils.cache import REASONS
    from course_utils.errors import CourseError

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows few letters
    try:
        _check_copy(Path(sys.argv[0]), Path(sys.prefix))
        app()
    except (ValueError, CourseError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("course_utils", "authoring"):
            raise
        if package in ("jupytext", "nbgrader", "pytest", "ruff", "distributed", "copydetect"):
            message = f"{error}. Authors and instructors install more: pip install -e '.[author]'"
        else:
            message = (f"{error} in {sys.prefix}, so the environment is not complete. If it is the course's "
                       "own, remove that folder and run `make setup`.")
    except OSError as error:
        if error.errno not in REASONS:
            raise
        where = f"{error.filename} cannot be written or read: " if error.filename else ""
        message = f"{where}{REASONS[error.errno]}. Make room or name another place, and run it again."
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
