"""What a run is for, as only its user knows: read by the plan for the method, the rank and the batch."""

from typing import Literal

from pydantic import Field

from luthier.config.section import Section

Task = Literal["classification", "extraction", "rewriting", "summarization", "translation", "rag", "chat", "code", "reasoning"]


class PlanSettings(Section):
    """What the plan cannot see in the rows (docs/choosing-settings.md). null: it goes by the rows alone."""

    task: Task | None = Field(None, description="what the model is for, in the words of luthier models choose: hard tasks get small batches")
    domain: Literal["style", "near", "far"] | None = Field(
        None,
        description="how far the rows are from what the model was trained on: style (only tone and form change), near or far; decides the rank "
        "before the number of rows does",
    )
    mistakes: Literal["usual", "costly"] = Field(
        "usual", description="costly: full training is considered earlier, and more is asked of the evaluation"
    )
    facts: Literal["fixed", "changing"] = Field("fixed", description="changing: what is true today may not be next month: retrieval comes first")
