"""The report's section on retrieval: which of base, tuned and both with documents to ship, and how well passages were found."""

from luthier import files
from luthier.diagnose.page import text
from luthier.run_folder import RunFolder


def retrieval_html(run: RunFolder) -> str:
    """A paragraph for each luthier rag compare; "" where there was none. The scores stand with the further evaluations."""
    return "".join(_of(path.parent.name, files.read_json(path)) for path in sorted(run.evals.glob("*/rag.json")))


def _of(name: str, told: dict[str, object]) -> str:
    found = told["retrieval"]
    assert isinstance(found, dict)
    recall = f"{100 * found['recall']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f}) of {found['questions']:,} questions"
    among = f"A passage that answers was among the first {found['at']} for {recall}" if found["questions"] else "Of no question the passage is known"
    seen = f"{among}; for {found['nothing_fits']:,} nothing of the documents fitted."
    return f"<h3>{text(name)}</h3><p><strong>{text(told['verdict'])}</strong></p><p>{text(seen)}</p>"
