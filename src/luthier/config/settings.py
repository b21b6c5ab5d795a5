"""Every setting, once: its name, kind, default, unit and meaning. YAML, `--help`, the schema and the docs come from here."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from luthier.config.checks import CheckSettings
from luthier.config.data import DataSettings
from luthier.config.section import Auto, Section, Text


class TokenizerSettings(Section):
    """The tokenizer, where it is not simply the model's own."""

    path: Text | None = Field(None, description="a folder with another tokenizer (luthier data tokenizer train); null: the model's own")
    add_special_tokens: list[Text] = Field(
        [],
        description="tokens to add, which rows may then hold: the embeddings grow by a row each, and these rows are trained and saved; "
        "one that the chat template writes is a control token, which no text may hold",
    )


class LoraSettings(Section):
    """Low-rank adapters (Hu 2021, arXiv:2106.09685). Names are PEFT's."""

    r: int = Field(16, ge=1, le=1024, description="rank: the width of the adapter; memory grows in step with it")
    lora_alpha: float = Field(32, gt=0, description="scale: the adapter's output is multiplied by lora_alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training")
    target_modules: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        "all-linear", description="layers that get an adapter: all-linear, or names ([q_proj, v_proj])"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="numbers of the layers that get an adapter, from 0; []: all (those below the lowest are frozen whole)"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732)")
    modules_to_save: list[Text] = Field(
        [], description="tables trained and saved whole: [embed_tokens, lm_head], which another tokenizer needs; many times the adapter's size"
    )


class TrainingSettings(Section):
    """How the rows become updates. Names are those of Transformers' TrainingArguments, but for batch_size."""

    batch_size: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="examples per update, over all devices; how it is cut is the engine's business"
    )
    num_train_epochs: float = Field(3, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="stop after this many updates, whatever num_train_epochs says")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field("auto", description="peak rate, after warm-up")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field("cosine", description="the rate's way down after warm-up")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the updates in which the rate rises")
    warmup_steps: int | None = Field(None, ge=0, description="updates in which the rate rises; used instead of warmup_ratio")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of what is trained")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the second moment")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    optim: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="AdamW; adamw_8bit keeps its moments in 8 bits: 6 bytes less for each trained number, and slower on a CPU"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="number format of the weights and the arithmetic; auto takes the fastest here (fp16 on GPUs without bf16 only); "
        "what is trained is always kept in fp32 as well",
    )
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = Field(
        "auto",
        description="compute activations again in the backward pass: selective (norms and MLPs) or full (whole blocks) need less memory and "
        "more time; auto: only where the run does not fit without; the result is the same",
    )
    share_prefixes: bool = Field(True, description="compute what rows of an update begin with once (exact; off: every row by itself)")
    micro_batch_tokens: int = Field(4096, ge=1, description="tokens that go through the model at once; changes speed and memory, not the result")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile what stands between the matrix products (norms, gated activations) into single loops; "
        "auto: where the run is predicted to be long enough to repay it; needs a C++ compiler, without one the run goes on as it is",
    )
    frozen_base: Literal["bf16", "fp8"] = Field(
        "bf16",
        description="fp8: products with the frozen weights below adapters in 8 bits; what that costs in loss is said at the start; "
        "needs a GPU of compute capability 8.9 or newer, and memory for both forms of the weights",
    )
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto", description="attention: auto is Luthier's own; another one runs the model plainly through Transformers, a row at a time"
    )
    cache_frozen_layers: bool = Field(
        False,
        description="keep what the layers below the lowest trained one give on disk, and do not run them again (exact); "
        "pays where lora.layers_to_transform leaves many of them out",
    )
    rows_file: bool = Field(False, description="also write rows.jsonl: the mean loss of every row at every update")
    logging_steps: int = Field(10, ge=1, description="updates between two printed lines (metrics.jsonl has every update)")
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="when checkpoints are written")
    save_steps: int = Field(100, ge=1, description="updates between two checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints that are kept")


class EvaluationSettings(Section):
    """Measuring, during and after the run."""

    every_steps: int | None = Field(None, ge=1, description="updates between two evaluations of the held-out loss; null: at the end only")
    metrics: list[Literal["exact_match", "valid_json", "field_f1"]] = Field(
        ["exact_match"], min_length=1, description="what `luthier eval` counts on the answers"
    )
    max_rows: int | None = Field(None, ge=1, description="held-out rows to answer; null: all")
    base_rows: int | None = Field(None, ge=1, description="held-out rows the base model answers; null: as many as the tuned one")
    shots: int = Field(0, ge=0, le=64, description="also ask the base with this many training examples in the prompt (0: do not)")
    max_new_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="longest answer; auto is just above the 99th percentile of the training answers"
    )
    sample_answers: int = Field(2, ge=0, le=20, description="held-out rows answered and printed at each evaluation of a run, the last one included")


class Settings(Section):
    """One run. Read by every verb."""

    model: Text = Field(description="a name of `luthier models list`, a hub id (org/name) or a folder")
    data: DataSettings
    template: Text = Field(
        "auto",
        description="how chats are written: auto (the model's own; where it has none, one chosen by rule), a name (alpaca, chatml, zephyr, inst) "
        "or a FILE.jinja",
    )
    tokenizer: TokenizerSettings = TokenizerSettings()
    checks: CheckSettings = CheckSettings()
    method: str = Field("lora", description="how to fine-tune: lora (an adapter beside the frozen model) or full (all weights of the model)")
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    init_from: Text | None = Field(None, description="a run whose adapter or model is the starting point (new rows or more epochs)")
    output_dir: Text = Field("runs", description="parent folder; each run makes its own folder in it")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    report_to: list[str] = Field([], description="[]: there are no trackers in this version; metrics.jsonl is always written")
    seed: int = Field(0, ge=0, description="every random draw comes from this number")

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _is_a_folder_or_a_section(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
