"""luthier serve."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal
from luthier.config.section import bytes_of
from luthier.errors import CallError

MOST_LOADED = 32  # adapters


class Precision(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Engine(StrEnum):
    transformers = "transformers"
    gguf = "gguf"
    vllm = "vllm"


Models = Annotated[
    list[str] | None,
    typer.Argument(help="RUN, MODEL or FOLDER. The first decides the base; all others are adapters of it. NAME=RUN gives it another name."),
]
Adapters = Annotated[Path | None, typer.Option(help="Folder of adapters: each folder in it is served by its name, also those that come later.")]
Engines = Annotated[
    Engine, typer.Option(help="What answers: transformers (our own), gguf (llama.cpp; GGUF files or runs with such exports) or vllm.")
]
MaxAdapters = Annotated[
    int | None, typer.Option(min=1, help="Adapters kept in memory (default: 32); those not asked for longest go first. Other engines keep all.")
]
Context = Annotated[int | None, typer.Option(min=64, help="With gguf or vllm: tokens of one prompt and its answer (gguf: 2048; vllm: the model's).")]
Memory = Annotated[str | None, typer.Option(help="Memory for the requests that are answered, such as 4GiB; default: half of what the model leaves.")]
Index = Annotated[
    Path | None, typer.Option(help="Answer chats from the documents of this index (luthier rag index), and its embedder at /v1/embeddings.")
]


def serve(
    models: Models = None,
    adapters: Adapters = None,
    engine: Engines = Engine.transformers,
    host: Annotated[str, typer.Option(help="Address to listen on. Any but this machine's own needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Requests that are answered at the same time.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait beside them; more are refused with 503.")] = 256,
    max_adapters: MaxAdapters = None,
    precision: Annotated[Precision, typer.Option(help="Number format; auto: that of the run, or bf16.")] = Precision.auto,
    context: Context = None,
    vllm_python: Annotated[Path | None, typer.Option(help="With vllm: the Python that has it (default: beside vllm on PATH).")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer may take.")] = 600.0,
    memory: Memory = None,
    rag: Index = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), to speak HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM, without a password).")] = None,
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
    _check(models, adapters, keys_asked=bool(key_model or key_admin))
    assert models is not None
    if engine is not Engine.transformers:
        if memory is not None or max_adapters is not None:
            problem = "--memory and --max-adapters are for our own engine"
            raise CallError(problem, where="luthier serve", next_step="leave them out, or --engine transformers")
        _forward(
            engine.value,
            models,
            adapters=adapters,
            host=host,
            port=port,
            slots=slots,
            queue=queue,
            keys=keys,
            allowed_hosts=allowed_host or [],
            precision=precision.value,
            answer_s=timeout,
            context=context,
            vllm_python=vllm_python,
            tls_certificate=tls_cert,
            tls_key=tls_key,
            index=rag,
        )
        return
    if context is not None or vllm_python is not None:
        raise CallError("--context and --vllm-python are for other engines", where="luthier serve", next_step="leave them out, or --engine vllm")
    with heavy_imports():
        from luthier.recipes import serving

    wanted = serving.Wanted(
        models, adapters, host, port, slots, queue, max_adapters or MOST_LOADED, keys, allowed_host or [], precision.value, timeout
    )
    wanted = replace(wanted, kept_bytes=_bytes(memory), tls_certificate=tls_cert, tls_key=tls_key, index=rag)
    serving.serve(wanted, Terminal())


def _check(models: list[str] | None, adapters: Path | None, keys_asked: bool) -> None:
    if keys_asked:
        raise CallError(
            "--key-model and --key-admin have no effect without --new-key",
            where="luthier serve",
            next_step="luthier serve --new-key NAME --keys FILE",
        )
    if not models:
        raise CallError("names nothing to serve", where="luthier serve", next_step="luthier serve RUN, or luthier serve MODEL --adapters FOLDER")
    if adapters is not None and not adapters.is_dir():
        raise CallError("is no folder", where=f"--adapters {adapters}", next_step="make it, or name another")


def _forward(engine: str, models: list[str], **how: Any) -> None:
    if engine != "vllm" and how["vllm_python"] is not None:
        raise CallError("--vllm-python is for --engine vllm", where="luthier serve", next_step="leave it out")
    if engine == "gguf" and how["precision"] != "auto":
        raise CallError("--precision has no effect on a GGUF file", where="luthier serve", next_step="leave it out: the file has its own")
    with heavy_imports():
        from luthier.recipes import forwarding

    forwarding.serve(forwarding.Wanted(engine, models, **how), Terminal())


def _bytes(size: str | None) -> int | None:
    try:
        return None if size is None else bytes_of(size)
    except ValueError as error:
        raise CallError(str(error), where="luthier serve --memory", next_step="--memory 4GiB") from error


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
