"""`course phone`: the model in a phone's browser.

As in `authoring.cli`, a subcommand's docstring is its help text: one line.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The model in a phone's browser: build the page, serve it.", no_args_is_help=True)

Out = Annotated[Path | None, typer.Option(help="the page's folder; else one in the cache")]


@app.command("build")
def build_page(out: Out = None) -> None:
    """Make the page: engines by npm, our ONNX file, the packaged GGUF, the tokenizer."""
    from authoring.phone import build

    folder = build.build(out)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder} ({size / 1e6:,.0f} MB). Serve it: course phone serve")


@app.command("serve")
def serve_page(
    out: Out = None,
    host: Annotated[str, typer.Option(help="address to listen on; a phone needs this machine's own")] = (
        "127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8013,
    certificate: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM: HTTPS")] = None,
    key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM, its key")] = None,
) -> None:
    """Serve the page and show its address as a QR code; ends with Ctrl-C."""
    from authoring.phone import build, serve

    running = serve.server(out or build.default_folder(), host, port, certificate, key)
    url = serve.address(running)
    typer.echo(serve.qr_code(url))
    typer.echo(f"{url}  (Ctrl-C ends it)")
    if note := serve.warning(url):
        typer.echo(note)
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        running.server_close()
