"""A figure that does not stand where its reference says is found."""

import json

import pytest

from securefed.errors import ConfigError, LedgerTampered
from securefed.reports.document import Report
from securefed.reports.material import in_file
from securefed.reports.tracing import figures, target, trace
from securefed.reports.values import Figure


def test_every_figure_with_a_reference_stands_there(finished, report):
    assert trace(finished, report) > 80
    assert sum(1 for _ in figures(report)) > 100


def test_a_report_read_back_traces_alike(finished, report):
    again = Report.model_validate_json(report.to_text())
    assert again == report
    assert trace(finished, again) == trace(finished, report)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("privacy", "statements", 0, "epsilon"), 0.5),
        (("aggregation", "rounds", 0, "survivors"), 5),
        (("utility", "rounds", -1, "perplexity"), 1.0),
        (("leakage", "attacks", 0, "lift"), 0.0),
        (("identity", "facts", 2, "value"), "ab" * 32),
    ],
)
def test_an_edited_figure_is_named_with_the_place_that_holds_another(
    finished, report, where, value
):
    values = json.loads(report.to_text())
    figure = values
    for part in where:
        figure = figure[part]
    figure["value"] = value
    if figure.get("interval"):
        figure["interval"] = [value, value]
    with pytest.raises(LedgerTampered, match="is said to stand at"):
        trace(finished, Report.model_validate(values))


def test_an_edited_ledger_is_named(run_folder, report):
    path = run_folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    closing = json.loads(lines[-2])
    assert closing["kind"] == "closed"
    closing["body"]["guarantees"][0]["epsilon"] = 0.125
    lines[-2] = json.dumps(closing) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(LedgerTampered, match=r"guarantees/0/epsilon; it holds '0.125'"):
        trace(run_folder, report)


def test_no_reference_leads_out_of_the_run_folder(finished):
    with pytest.raises(ConfigError, match="is outside the run folder"):
        target(finished, in_file("../run.toml", "/privacy"))


def test_a_missing_file_or_line_is_named(finished, report):
    gone = Figure(value=1, kind="count", references=[in_file("nowhere.json", "/a")])
    row = report.utility.rounds[0].model_copy(update={"round": gone})
    utility = report.utility.model_copy(update={"rounds": [row]})
    with pytest.raises(LedgerTampered, match=r"nowhere.json: cannot be read"):
        trace(finished, report.model_copy(update={"utility": utility}))
    with pytest.raises(ConfigError, match=r"ledger.jsonl: has no line 9999"):
        target(finished, in_file("ledger.jsonl", "/a", line=9999))
