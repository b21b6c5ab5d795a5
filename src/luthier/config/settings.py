"""Every setting, once: its name, kind, default, unit and meaning. YAML, `--help`, the schema and the docs come from here."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.config.adapters import (
    BottleneckSettings,
    Expression,
    FreezeSettings,
    Ia3Settings,
    LoraSettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
    QloraSettings,
    check_expression,
)
from luthier.config.checks import CheckSettings
from luthier.config.data import DataSettings
from luthier.config.intent import PlanSettings
from luthier.config.launch import Hosts, LaunchSettings
from luthier.config.metric_names import MetricName
from luthier.config.preference import Objective, PreferenceSettings
from luthier.config.section import Auto, Section, Size, Text


class TokenizerSettings(Section):
    """The tokenizer, where it is not simply the model's own."""

    path: Text | None = Field(None, description="a folder with another tokenizer (luthier data tokenizer train); null: the model's own")
    add_special_tokens: list[Text] = Field(
        [],
        description="tokens to add, which rows may then hold: the embeddings grow by a row each, and these rows are trained and saved; "
        "one that the chat template writes is a control token, which no text may hold",
    )


class TrainingSettings(Section):
    """How the rows become updates. Names are those of Transformers' TrainingArguments, but for batch_size."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Auto = Field(
        "auto", description="examples per update, over all devices; how it is cut is the engine's business"
    )
    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000)] | Auto = Field(
        "auto", description="passes over the training rows; auto: fewer with more rows"
    )
    max_steps: int | None = Field(None, ge=1, le=1_000_000_000, description="stop after this many updates, whatever num_train_epochs says")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field("auto", description="peak rate, after warm-up")
    learning_rates: dict[Expression, Annotated[float, Field(gt=0)]] = Field(
        {}, description="other rates for some weights: {regular expression: factor on learning_rate}, {embed_tokens|lm_head: 0.1}"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "cosine_with_restarts", "warmup_stable_decay"] = Field(
        "cosine", description="the rate's way down after warm-up; warmup_stable_decay stays at the peak until its end"
    )
    num_cycles: int = Field(1, ge=1, description="how often cosine_with_restarts goes down")
    decay_ratio: float = Field(0.1, gt=0, le=1, description="share of the updates in which warmup_stable_decay falls, at the end of the run")
    decay_steps: int | None = Field(None, ge=1, description="updates in which warmup_stable_decay falls; used instead of decay_ratio")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto", description="share of the updates in which the rate rises; auto: 0.03, and 0.1 for preference tuning"
    )
    warmup_steps: int | None = Field(None, ge=0, description="updates in which the rate rises; used instead of warmup_ratio")
    weight_decay: float = Field(0.0, ge=0, description="the optimizer's decay of what is trained, but for norms, biases and other vectors")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment, and Lion's")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the second moment; Lion's second (0.99 is usual)")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    optim: Literal["adamw", "adamw_8bit", "adafactor", "lion", "lion_8bit", "muon", "schedule_free"] = Field(
        "adamw",
        description="adamw; adamw_8bit keeps its moments in 8 bits; adafactor, lion and lion_8bit keep fewer of them; muon (method: full); "
        "schedule_free needs no falling rate (docs/methods.md)",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="number format of the weights and the arithmetic; auto takes the fastest here (fp16 on GPUs without bf16 only); "
        "what is trained is always kept in fp32 as well",
    )
    neftune_noise_alpha: float = Field(
        0.0, ge=0, description="noise on the embeddings of training rows, at most this / sqrt(tokens * width) (arXiv:2310.05914; 5 is usual); 0: none"
    )
    label_smoothing_factor: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all words; the loss of updates shows it, the held-out loss does not"
    )
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = Field(
        "auto",
        description="compute activations again in the backward pass: selective (norms and MLPs) or full (whole blocks) need less memory and "
        "more time; auto: only where the run does not fit without; the result is the same",
    )
    rows_together: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="so many rows that follow each other in the data stay together when rows are shuffled: those that begin alike "
        "(luthier data rag-mix writes them so) then meet in one update, and what they share is computed once",
    )
    share_prefixes: bool = Field(True, description="compute what rows of an update begin with once (exact; off: every row by itself)")
    side_by_side: bool = Field(
        True,
        description="with an adapter, on a CPU of several cores: two micro-batches at once, each on its own cores (a little faster, and about a "
        "quarter more memory; never beside max_memory); off: one after the other",
    )
    micro_batch_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | Auto = Field(
        "auto", description="tokens that go through the model at once; auto: 4096, or the most that fits; changes speed and memory, not the result"
    )
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
    deterministic: bool = Field(
        False,
        description="on a GPU only operations that give the same bits every time, and none of the faster others; a CPU does so anyway (docs/runs.md)",
    )
    rows_file: bool = Field(False, description="also write rows.jsonl: the mean loss of every row at every update")
    logging_steps: int = Field(10, ge=1, description="updates between two printed lines (metrics.jsonl has every update)")
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="when checkpoints are written")
    save_steps: int = Field(100, ge=1, description="updates between two checkpoints")
    save_minutes: float | None = Field(None, gt=0, description="also write a checkpoint so many minutes after the last one; null: not by time")
    save_total_limit: int = Field(2, ge=1, description="checkpoints that are kept, the newest; the best are kept beside them")
    save_best: bool = Field(False, description="also write a checkpoint where a measurement of the held-out rows is among the best so far")
    metric_for_best_model: Text = Field(
        "loss",
        description="the held-out number that says which is best: loss, one of the objective's (sft: perplexity), one of evaluation.metrics "
        "(with in_loop_rows), drift/kl or drift/general_loss",
    )
    greater_is_better: bool | None = Field(
        None, description="whether a greater metric_for_best_model is better; null: true but for losses, perplexity, repetition, kl and drift"
    )
    keep_best: int = Field(1, ge=1, description="best checkpoints that are kept")
    load_best_model_at_end: bool = Field(False, description="what the run leaves is its best checkpoint, not the last (and save_best)")
    async_save: bool = Field(True, description="training goes on while a checkpoint is written, which takes memory for a copy of what is trained")

    @model_validator(mode="before")
    @classmethod
    def _schedule_free_has_no_schedule(cls, given: Any) -> Any:
        free = isinstance(given, dict) and given.get("optim") == "schedule_free"
        return {"lr_scheduler_type": "constant"} | given if free else given


class EvaluationSettings(Section):
    """Measuring, during and after the run."""

    every_steps: int | None = Field(None, ge=1, description="updates between two evaluations of the held-out loss; null: at the end only")
    metrics: list[MetricName] = Field(["exact_match"], min_length=1, description="what `luthier eval` counts on the answers")
    max_rows: int | None = Field(None, ge=1, description="held-out rows to answer; null: all")
    base_rows: int | None = Field(None, ge=1, description="held-out rows the base model answers; null: as many as the tuned one")
    shots: int = Field(0, ge=0, le=64, description="also ask the base with this many training examples in the prompt (0: do not)")
    max_new_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="longest answer; auto is just above the 99th percentile of the training answers"
    )
    sample_answers: int = Field(2, ge=0, le=20, description="held-out rows answered and printed at each evaluation of a run, the last one included")
    in_loop_rows: int = Field(
        0, ge=0, description="held-out rows answered and counted by `metrics` at each evaluation of a run, the base's count beside it; 0: none"
    )
    general: Text | None = Field(
        "auto",
        description="rows that forgetting is measured on at each evaluation of a run: auto (those that come with Luthier, where every_steps is set), "
        "a file of your own, or null for none (docs/watching.md)",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="end after so many evaluations in a row in which training.metric_for_best_model got no better; null: train to the end"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="what the metric must gain at least to count as better")
    drift_weight: float = Field(
        0.0,
        ge=0,
        description="what a nat of drift from the base (drift/kl) costs when the best checkpoint is chosen, in units of metric_for_best_model",
    )

    @property
    def general_rows(self) -> str | None:
        """Where the rows stand that forgetting is measured on: auto or a file; None where it is not measured."""
        return None if self.general == "auto" and self.every_steps is None else self.general


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
    objective: Objective = Field(
        "sft",
        description="what is learned of the rows: their answers (sft); which of two answers is better (dpo, orpo, simpo); "
        "whether an answer is good (kto) (docs/preference.md)",
    )
    preference: PreferenceSettings = PreferenceSettings()
    plan: PlanSettings = PlanSettings()
    method: str = Field(
        "lora", description="how to fine-tune: lora, dora, qlora, bottleneck, prefix, prompt, p_tuning, ia3, peft or full (docs/methods.md)"
    )
    lora: LoraSettings = LoraSettings()
    qlora: QloraSettings = QloraSettings()
    bottleneck: BottleneckSettings = BottleneckSettings()
    prefix: PrefixSettings = PrefixSettings()
    prompt: PromptSettings = PromptSettings()
    p_tuning: PTuningSettings = PTuningSettings()
    ia3: Ia3Settings = Ia3Settings()
    peft: dict[str, Any] = Field({}, description="a method of PEFT by its type, with the settings of its config: {type: VERA, r: 64}")
    freeze: FreezeSettings = FreezeSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    init_from: Text | None = Field(None, description="a run whose adapter or model is the starting point (new rows or more epochs)")
    output_dir: Text = Field("runs", description="parent folder; each run makes its own folder in it")
    resume: Literal["auto", "never"] = Field(
        "never",
        description="auto: where a run of these settings in output_dir has not ended, luthier train goes on with it (for jobs that are "
        "started again); never: only where --resume says so",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    devices: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        1, description="devices of each host that train together, a process each; auto: every GPU of the host, and one process on a CPU"
    )
    nodes: Hosts = Field(1, description="hosts that train together, or MIN:MAX where some may come and go while it runs (docs/launch.md)")
    wrapping: Literal["auto", "ddp", "fsdp", "hsdp", "tp"] = Field(
        "auto",
        description="how several devices share the weights: ddp, each has all of them; fsdp, each has a part; hsdp, the devices of a host have "
        "a part each; tp, each computes a part of every layer (Transformers' tensor parallel, docs/scaling.md); "
        "auto: ddp where the weights fit one device, else fsdp, or hsdp on several hosts",
    )
    sequence_parallel: int = Field(
        1,
        ge=1,
        le=1024,
        description="devices of a host that share each micro-batch, for rows that are too long for one: each holds an equal part of its tokens "
        "(Ulysses, docs/scaling.md); 1: none",
    )
    launch: LaunchSettings = LaunchSettings()
    device_map: Literal["auto", "cpu"] | dict[str, str | int] | None = Field(
        None,
        description="where the parts of one model lie, for one process: auto (GPUs first, then memory, then disk), cpu, or "
        "{name of a part: a GPU's number, cpu or disk}; null: all on `device`",
    )
    max_memory: Size | None = Field(
        None, description="most memory that a run may take (3GB; the GPU's where one is used), one that needs more is not begun; null: the machine's"
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="trackers that are told of every row of metrics.jsonl, which is always written (docs/runs.md); []: none"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="every random draw comes from this number")

    @property
    def virtual_tokens(self) -> int:
        """How many tokens the method puts before every row."""
        counts = {"prefix": self.prefix.num_virtual_tokens, "prompt": self.prompt.num_virtual_tokens, "p_tuning": self.p_tuning.num_virtual_tokens}
        return counts.get(self.method, 0)

    @field_validator("peft")
    @classmethod
    def _names_layers(cls, value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(targets := value.get("target_modules"), str):
            check_expression(targets)
        return value

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _is_a_folder_or_a_section(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
