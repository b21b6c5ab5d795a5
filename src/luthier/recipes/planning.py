"""What a run would cost, and what every `auto` becomes. No weights are loaded; without torch or the model the tokens are estimated."""

from luthier import files
from luthier.config.load import Config
from luthier.data import prepare
from luthier.data.conversations import check_objective
from luthier.models import facts, find
from luthier.models.facts import ModelFacts
from luthier.plan import choose, machine, shape
from luthier.plan.choose import Plan
from luthier.reporting import Reporter, Silent


def make_plan(config: Config, reporter: Reporter | None = None) -> Plan:
    """The plan of a config on this machine. Reads the rows; fetches nothing but a model that is not here and not in the catalog."""
    reporter = reporter or Silent()
    settings = config.settings
    rows = prepare.load_rows(settings.data, config.file.parent, settings.seed, reporter)
    check_objective(rows.sources, settings.objective)
    for note in rows.notes:
        reporter.say(note)
    here = machine.stored_machine(files.home()) or machine.this_machine_without_torch()
    card = find.of_catalog(settings.model, config.file.parent)
    model_facts: ModelFacts = card.facts if card else facts.from_folder(find.find(settings.model, reporter, config.file.parent))
    plan = choose.resolve(settings, model_facts, here, shape.of_text(rows.train, settings.objective, len(rows.held_out)))
    reporter.say(f"tokens are estimated at {shape.CHARACTERS_PER_TOKEN} characters each; luthier data check counts them")
    return plan
