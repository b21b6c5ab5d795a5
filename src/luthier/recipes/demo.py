"""The main job, whole: US addresses to JSON with the default model, from the rows to a merged model and a report."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from luthier import files
from luthier.config.load import Config, load_config
from luthier.data.us_addresses import demo_rows
from luthier.engine import probe
from luthier.recipes import evaluation, handover, sft
from luthier.recipes.verify import SHORT, Verdict, verify
from luthier.records import Parity, Scorecard
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder

# What a user would write. Rate and batch are what `auto` gives for 135M parameters and one pass over 896 rows, written out so that they stay.
SETTINGS = """\
model: smollm2-135m-instruct
data:
  train: {train}
  eval: {test}
method: lora
lora: {{r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear}}
training:
  batch_size: 4
  num_train_epochs: 1
  learning_rate: 1e-3
  lr_scheduler_type: linear
  warmup_ratio: 0.03
  precision: {precision}     # the faster one of this machine, so that a second run is the same
  logging_steps: 25
  save_steps: 100
evaluation:
  metrics: [exact_match, valid_json, field_f1]
  base_rows: 60       # the base answers a fixed part of the held-out rows
  shots: 5            # and is also asked with five examples: a fair baseline
output_dir: {output_dir}
seed: 0
"""


# Rows that the short form of luthier verify works on: seconds.
VERIFIED_ROWS = 24


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo made and measured."""

    run: RunFolder
    scorecard: Scorecard
    parity: Parity
    verdict: Verdict
    seconds: float


def demo(reporter: Reporter | None = None, *, output_dir: Path = Path("runs"), max_steps: int | None = None, rows: int | None = None) -> Outcome:
    """Run the main job. `max_steps` and `rows` (held-out rows to answer) make it shorter, to try the road; the bars hold without them."""
    reporter = reporter or Silent()
    start = time.perf_counter()
    text = _settings(output_dir)
    overrides = [f"training.max_steps={max_steps}"] * bool(max_steps) + [f"evaluation.max_rows={rows}"] * bool(rows)

    run = sft.fit(_read(text, overrides), reporter, title="demo")
    files.write_text(run.path / "demo.yaml", text)
    scorecard = evaluation.evaluate(run, reporter)
    _, parity = handover.export(run, "merged", reporter)
    verdict = verify(load_config(run.config), reporter, rows=VERIFIED_ROWS, only=SHORT, run=run)
    return Outcome(run, scorecard, parity, verdict, time.perf_counter() - start)


def _settings(output_dir: Path) -> str:
    """The YAML that a user would write for this job."""
    train, test = demo_rows()
    precision = probe.known_machine(probe.best_device()).faster_precision
    return SETTINGS.format(train=train, test=test, output_dir=output_dir.resolve(), precision=precision)


def _read(text: str, overrides: list[str]) -> Config:
    """Read it as `luthier train` would, from a file; its paths are absolute, so the file may go again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.yaml"
        files.write_text(path, text)
        return load_config(path, overrides)
