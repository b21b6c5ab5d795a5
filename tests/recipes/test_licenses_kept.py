"""A run keeps the license of its model and says that the rows' is not stated; the report shows both."""

from luthier import files
from luthier.diagnose.report import write_report
from luthier.run_folder import RunFolder


def test_the_license_of_the_model_and_of_the_rows_go_to_the_run_and_its_report(copied: RunFolder) -> None:
    environment = files.read_json(copied.environment)
    kept = environment["licenses"]
    assert kept["model"]["license"] == "not stated"
    assert "holds no license" in kept["model"]["notes"][0]
    assert [row["license"] for row in kept["rows"]] == ["not stated"]
    kept["model"] |= {"license": "llama3.2", "include": ["Built with Llama"]}
    files.write_json(copied.environment, environment)
    report = write_report(copied).read_text(encoding="utf-8")
    for words in ("licenses.model.license", "llama3.2", "Built with Llama", "licenses.rows"):
        assert words in report
