"""Settings of a run's updates that have no effect, or no sense, beside others."""

from collections.abc import Iterator, Mapping

from luthier.config.preference import MEASURED
from luthier.config.settings import Settings

# Names of the forgetting meter among an evaluation's numbers.
DRIFT = ("drift/kl", "drift/general_loss")
# setting (of training)   the one value of another setting beside which it is read
READ_BESIDE = {
    "num_cycles":         ("lr_scheduler_type", "cosine_with_restarts"),
    "decay_ratio":        ("lr_scheduler_type", "warmup_stable_decay"),
    "decay_steps":        ("lr_scheduler_type", "warmup_stable_decay"),
}  # fmt: skip
# optimizer      settings of AdamW that it has no use for
NOT_READ_BY = {
    "adafactor":  ("adam_beta1", "adam_beta2", "adam_epsilon"),
    "lion":       ("adam_epsilon",),
    "lion_8bit":  ("adam_epsilon",),
}  # fmt: skip
# method         why none of its layers gives the same throughout a run
NEVER_FROZEN = {
    "bottleneck":  "every layer is trained",
    "prefix":      "every layer sees the virtual tokens, which are trained",
    "prompt":      "every layer sees the virtual tokens, which are trained",
    "p_tuning":    "every layer sees the virtual tokens, which are trained",
}  # fmt: skip


def clashes(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What cannot stand together: the setting's dotted name, the problem, the next step. `given` has the names that were written."""
    yield from _of_schedule(settings, given)
    yield from _of_optimizer(settings, given)
    yield from _of_noise(settings, given)
    yield from _of_saving(settings, given)
    yield from _of_measuring(settings, given)
    yield from _of_replay(settings)
    yield from _of_frozen_layers(settings)
    if settings.objective != "sft" and "data.loss_on" in given:
        yield "data.loss_on", f"objective: {settings.objective} trains the answers that are judged, and nothing else", "take loss_on out"


def _of_schedule(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    training = settings.training
    for name, (other, value) in READ_BESIDE.items():
        if f"training.{name}" in given and getattr(training, other) != value:
            yield f"training.{name}", f"{name} has no effect with {other}: {getattr(training, other)}", f"set {other}: {value}, or take {name} out"
    if training.decay_steps is not None and "training.decay_ratio" in given:
        yield "training.decay_steps", "decay_steps and decay_ratio both say how long the rate falls", "keep one of the two"


def _of_optimizer(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    training = settings.training
    for name in NOT_READ_BY.get(training.optim, ()):
        if f"training.{name}" in given:
            yield f"training.{name}", f"{name} has no effect with optim: {training.optim}", f"take {name} out"
    if training.optim == "muon" and settings.method != "full":
        yield "training.optim", "muon is for whole weight matrices, and an adapter's are parts of them", "optim: adamw, or method: full"
    if training.optim == "schedule_free" and training.lr_scheduler_type != "constant":
        yield "training.lr_scheduler_type", "schedule_free takes the mean of its weights in place of a falling rate", "lr_scheduler_type: constant"
    if training.optim == "schedule_free" and training.adam_beta1 == 0:
        yield "training.adam_beta1", "schedule_free divides by adam_beta1", "adam_beta1: 0.9"


def _of_noise(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    training = settings.training
    if settings.objective != "sft":
        for name in ("neftune_noise_alpha", "label_smoothing_factor"):
            if getattr(training, name):
                yield f"training.{name}", f"{name} is for objective: sft, and this is {settings.objective}", f"take {name} out"
    if training.neftune_noise_alpha and training.share_prefixes and "training.share_prefixes" in given:
        yield "training.share_prefixes", "each row has noise of its own, so nothing is shared beside neftune_noise_alpha", "take one of the two out"
    if training.neftune_noise_alpha and training.cache_frozen_layers:
        yield "training.cache_frozen_layers", "beside neftune_noise_alpha the frozen layers give others at every update", "take one of the two out"


def _of_saving(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    training, objective = settings.training, settings.objective
    strategy, saves_best = training.save_strategy, training.save_best or training.load_best_model_at_end
    if "training.save_steps" in given and strategy != "steps":
        yield "training.save_steps", f"save_steps has no effect with save_strategy: {strategy}", "set save_strategy: steps, or take save_steps out"
    if strategy == "no" and training.save_minutes is None and not saves_best:
        for name in ("save_total_limit", "async_save"):
            if f"training.{name}" in given:
                yield f"training.{name}", f"{name} has no effect with save_strategy: no", "take one of the two out"
    if not saves_best and settings.evaluation.early_stopping_patience is None:
        for name in ("metric_for_best_model", "greater_is_better", "keep_best"):
            # A file may spell every default out.
            if f"training.{name}" in given and getattr(training, name) != type(training).model_fields[name].default:
                yield f"training.{name}", f"{name} has no effect without save_best", f"save_best: true, or take {name} out"
        return
    asked = "load_best_model_at_end" if training.load_best_model_at_end else "save_best"
    asked = f"training.{asked}" if saves_best else "evaluation.early_stopping_patience"
    if settings.data.eval is None or settings.evaluation.every_steps is None:
        lack = "data.eval: null" if settings.data.eval is None else "evaluation.every_steps: null"
        short = asked.partition(".")[2]
        yield asked, f"with {lack} there are no measurements to choose from", f"give {lack.partition(':')[0]}, or take {short} out"
    known = ("loss", *MEASURED[objective], *_measured_while_training(settings))
    metric = training.metric_for_best_model
    if metric in settings.evaluation.metrics and metric not in known:
        yield "training.metric_for_best_model", f"{metric} is not measured while training", "evaluation.in_loop_rows: 20"
    elif metric not in known:
        yield "training.metric_for_best_model", f"{metric} is not measured with objective: {objective}", f"one of: {', '.join(known)}"


def _measured_while_training(settings: Settings) -> tuple[str, ...]:
    """What an evaluation of the run gives beside the loss and the objective's numbers."""
    asked = settings.evaluation
    return (*(asked.metrics if asked.in_loop_rows else ()), *(DRIFT if asked.general_rows else ()))


def _of_measuring(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    asked, data = settings.evaluation, settings.data
    chooses = settings.training.save_best or settings.training.load_best_model_at_end or asked.early_stopping_patience is not None
    if data.eval is None:
        for name in ("in_loop_rows", "general"):
            if f"evaluation.{name}" in given and getattr(asked, name) not in (0, "auto", None):
                yield f"evaluation.{name}", f"{name} has no effect with data.eval: null", f"set data.eval: 5%, or take {name} out"
    if asked.early_stopping_threshold and asked.early_stopping_patience is None:
        yield "evaluation.early_stopping_threshold", "early_stopping_threshold has no effect without early_stopping_patience", "give both, or none"
    if asked.drift_weight and not (chooses and asked.general_rows):
        lack = "save_best or early_stopping_patience" if not chooses else "evaluation.general"
        yield "evaluation.drift_weight", f"drift_weight has no effect without {lack}", f"give {lack}, or take drift_weight out"


def _of_replay(settings: Settings) -> Iterator[tuple[str, str, str]]:
    data = settings.data
    if data.replay is None:
        if data.replay_from is not None:
            yield "data.replay_from", "replay_from has no effect without replay", "replay: 10%, or take replay_from out"
        return
    if settings.objective != "sft":
        yield "data.replay", f"rows to replay hold answers, and objective: {settings.objective} learns from rows that judge", "take replay out"
    if data.replay_from is not None and data.replay_from == settings.evaluation.general:
        yield "data.replay_from", "forgetting would be measured on the rows that are replayed", "another file, or evaluation.general: auto"


def _of_frozen_layers(settings: Settings) -> Iterator[tuple[str, str, str]]:
    if settings.training.cache_frozen_layers and (why := NEVER_FROZEN.get(settings.method)):
        yield "training.cache_frozen_layers", f"with method: {settings.method} {why}, and nothing can be kept", "take it out"
