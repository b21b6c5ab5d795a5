"""The options of every verb that asks an endpoint."""

from typing import Annotated

import typer

KeyEnv = Annotated[str | None, typer.Option(help="Name of the environment variable that holds the key. It is never printed or stored.")]
RequestsPerMinute = Annotated[float | None, typer.Option(min=0.01, help="No more requests than this.")]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests that are open at once.")]
TimeoutSeconds = Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")]
InputPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens that are sent.")]
OutputPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens that are made.")]
