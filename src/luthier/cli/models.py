"""luthier models list | show | fetch (choose, audit and bench have files of their own), and luthier cache ls | clean."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import benching, choosing
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.models.catalog import ModelCard

Name = Annotated[str, typer.Argument(help="A name of the catalog, a hub id or a folder.")]
ROWS = "rows-and-tokens"
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def list_models(
    size: Annotated[str, typer.Option(help="Parameters: 7B, 1B-8B, -3B or 30B-.")] = "",
    license_name: Annotated[str, typer.Option("--license", help="A license, or a part of its name.")] = "",
    language: Annotated[str, typer.Option(help="A language's code (en, de ...).")] = "",
    context: Annotated[int, typer.Option(help="Tokens of context, at least; with YaRN where the model has it.")] = 0,
    family: Annotated[str, typer.Option(help="A family, or a part of its name.")] = "",
    base: Annotated[bool, typer.Option("--base", help="Base versions only.")] = False,
    instruct: Annotated[bool, typer.Option("--instruct", help="Instruct versions only.")] = False,
    as_json: Json = False,
) -> None:
    """The catalog, or what is left of it by size, license, language, context, family and kind.

    Example: luthier models list --size 1B-8B --license apache --instruct
    """
    from luthier.models import catalog
    from luthier.models.selection import Wanted, select

    kind: catalog.Kind | None = None if base == instruct else "base" if base else "instruct"
    cards = select(catalog.cards(), Wanted(size, license_name, language, context, family, kind))
    if as_json:
        print_json([_row(card) for card in cards])
        return
    if not cards:
        Terminal().say("no model of the catalog is like that (luthier models list shows all)")
        return
    rows = [[card.name, _count(card), f"{card.facts.context:,}", card.license, card.summary] for card in cards]
    Terminal().table(["name", "parameters", "context", "license", "what"], rows)


def _row(card: "ModelCard") -> dict[str, Any]:
    named = ("name", "family", "kind", "hub", "license", "languages", "summary", "unverified")
    sizes = {"parameters": card.facts.parameters, "active_parameters": card.facts.active_parameters, "context": card.facts.context}
    return {**{name: getattr(card, name) for name in named}, **sizes}


def _count(card: "ModelCard") -> str:
    active = f" ({card.facts.active_parameters / 1e9:.1f} B active)" if card.has_experts else ""
    return f"{card.facts.parameters / 1e6:,.0f} M{active}"


def show(name: Name, as_json: Json = False) -> None:
    """Everything that is known of a model, and where it lies.

    Example: luthier models show smollm2-135m-instruct --json
    """
    from luthier.models import overview

    known = overview.describe(name)
    if as_json:
        print_json(known)
        return
    terminal = Terminal()
    for key, value in known.items():
        terminal.say(f"{key:<16} {_in_words(value)}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return f"MMLU {value['mmlu']} ({value['of']} version; {value['source']})"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def fetch(name: Name) -> None:
    """Fetch a model into the cache, or check that it is there and whole.

    Example: luthier models fetch smollm2-135m-instruct
    """
    from luthier.models import find

    terminal = Terminal()
    terminal.say(f"{name}: {find.find(name, terminal)}")


def cache_list(as_json: Json = False) -> None:
    """Models on this disk, and the rows and tokens of files that were read, with their size.

    Example: luthier cache ls
    """
    from luthier.data import ingest
    from luthier.models import cache

    known: list[dict[str, Any]] = [{"name": one.name, "path": str(one.path), "bytes": one.bytes, "source": one.source} for one in cache.cached()]
    if rows_bytes := ingest.cached_bytes():
        known.append({"name": ROWS, "path": str(ingest.folder()), "bytes": rows_bytes, "source": "luthier"})
    if as_json:
        print_json(known)
        return
    rows = [[one["name"], f"{one['bytes'] / 1e6:,.0f} MB", one["source"], one["path"]] for one in known]
    Terminal().table(["name", "size", "from", "folder"], rows)


def cache_clean(
    names: Annotated[list[str] | None, typer.Argument(help="Names that `luthier cache ls` shows.")] = None,
    all_models: Annotated[bool, typer.Option("--all", help="All of Luthier's own.")] = False,
) -> None:
    """Delete models, or the rows-and-tokens of files that were read, from Luthier's cache (the hub's own cache is left alone).

    Example: luthier cache clean smollm2-135m-instruct
    """
    from luthier.data import ingest
    from luthier.models import cache

    if bool(names) == all_models:
        raise CallError("say which: names, or --all", where="luthier cache clean", next_step="luthier cache ls shows the names")
    models = None if all_models else [name for name in names or () if name != ROWS]
    freed = cache.clean(models) + (ingest.clear() if all_models or ROWS in (names or ()) else 0)
    Terminal().say(f"freed {freed / 1e6:,.0f} MB")


COMMANDS: dict[str, Callable[..., None]] = {"list": list_models, "show": show, **choosing.COMMANDS, **benching.COMMANDS, "fetch": fetch}
CACHE_COMMANDS: dict[str, Callable[..., None]] = {"ls": cache_list, "clean": cache_clean}
