"""luthier serve."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal
from luthier.errors import CallError


class Precision(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="RUN, MODEL or FOLDER. The first decides the base; all others are adapters of it. NAME=RUN gives it another name."),
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of adapters: each folder in it is served by its name, also those that come later.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Any but this machine's own needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Requests that are answered at the same time.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait beside them; more are refused with 503.")] = 256,
    max_adapters: Annotated[int, typer.Option(min=1, help="Adapters kept in memory; those not asked for longest go first.")] = 32,
    precision: Annotated[Precision, typer.Option(help="Number format; auto: that of the run, or bf16.")] = Precision.auto,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer may take.")] = 600.0,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (their hashes). LUTHIER_API_KEY is one more.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name that requests may call this server by (Host), beside its own.")] = None,
    new_key: Annotated[str | None, typer.Option(help="Make a key of this name, write its hash into --keys, print it once, and end.")] = None,
    key_admin: Annotated[bool, typer.Option("--key-admin", help="With --new-key: the key may load and unload adapters and read /metrics.")] = False,
    key_model: Annotated[list[str] | None, typer.Option(help="With --new-key: a model that the key may use (default: all).")] = None,
) -> None:
    """Serve a model and its adapters through an OpenAI-compatible API.

    Example: luthier serve runs/support runs/sales --port 8000
    """
    if new_key is not None:
        _make_key(new_key, keys, tuple(key_model or ()), key_admin)
        return
    if key_model or key_admin:
        raise CallError(
            "--key-model and --key-admin have no effect without --new-key",
            where="luthier serve",
            next_step="luthier serve --new-key NAME --keys FILE",
        )
    if not models:
        raise CallError("names nothing to serve", where="luthier serve", next_step="luthier serve RUN, or luthier serve MODEL --adapters FOLDER")
    if adapters is not None and not adapters.is_dir():
        raise CallError("is no folder", where=f"--adapters {adapters}", next_step="make it, or name another")
    with heavy_imports():
        from luthier.recipes import serving

    wanted = serving.Wanted(models, adapters, host, port, slots, queue, max_adapters, keys, allowed_host or [], precision.value, timeout)
    serving.serve(wanted, Terminal())


def _make_key(name: str, path: Path | None, models: tuple[str, ...], admin: bool) -> None:
    if path is None:
        raise CallError(
            "needs a file for the key's hash", where="luthier serve --new-key", next_step=f"luthier serve --new-key {name} --keys keys.json"
        )
    from luthier.serve import keys

    terminal = Terminal(quiet=True)
    given = keys.new(path, name, models, admin=admin)
    terminal.say(f"{path} holds its hash; the key itself is kept nowhere and is shown this once:")
    typer.echo(given)
