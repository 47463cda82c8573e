"""``securefed report``: what it writes, what it refuses, and that it needs no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from reported import KEY, roster

from securefed.evidence.anchoring import signer_record
from securefed.reports.document import Report, report_schema
from securefed.reports.formats import FORMATS

SCHEMA = Path(__file__).parents[2] / "securefed" / "schemas" / "report.json"
HEAVY = ["torch", "transformers", "peft", "opacus", "safetensors", "flwr", "tenseal", "matplotlib"]


def test_the_published_schema_is_that_of_the_document():
    assert SCHEMA.read_text() == report_schema()


def test_a_report_is_written_with_the_verdicts_that_it_refers_to(cli, run_folder, tmp_path):
    signer = tmp_path / "signer.json"
    signer.write_text(signer_record(KEY.public))
    code, out, err = cli("report", run_folder, "--roster", roster(run_folder), "--signer", signer)
    assert (code, err) == (0, "")
    place = run_folder / "report"
    assert sorted(path.name for path in place.iterdir()) == ["report.en.html", "report.json"]
    assert str(place / "report.json") in out.replace("\n", "")
    values = json.loads((place / "report.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(values)
    report = Report.model_validate(values)
    assert report.identity.anchored
    assert all(row.anchored for row in report.leakage.attacks)
    judged = json.loads((run_folder / "threats" / "verdicts.json").read_text())
    assert len(judged["findings"]) == sum(len(part.claims) for part in report.threat_models)


def test_without_keys_of_the_reader_nothing_is_anchored(cli, run_folder):
    code, _, _ = cli("report", run_folder, "--format", "json")
    assert code == 0
    report = Report.model_validate_json((run_folder / "report" / "report.json").read_text())
    assert not report.identity.anchored
    assert report.open_items[0].kind == "unanchored"
    assert not any(row.anchored for row in report.leakage.attacks)
    assert not list((run_folder / "report").glob("*.html"))


def test_the_same_run_gives_the_same_report(cli, run_folder, tmp_path):
    for name in ("one.html", "two.html"):
        code, _, _ = cli("report", run_folder, "--lang", "ja", "--out", tmp_path / name)
        assert code == 0
    one, two = (tmp_path / "one.html").read_bytes(), (tmp_path / "two.html").read_bytes()
    assert one == two
    assert b'<html lang="ja">' in one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lang", "fr"), "--lang 'fr': must be one of"),
        (("--format", "docx"), "--format 'docx': must be one of html, md, json"),
        (("--roster", "nowhere.json"), "nowhere.json"),
        (("--signer", "nowhere.pem"), "nowhere.pem: cannot be read"),
    ],
)
def test_what_is_asked_wrongly_is_named(cli, finished, options, message):
    code, _, err = cli("report", finished, *options)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert not (finished / "report").exists()


def test_of_a_run_that_does_not_verify_there_is_no_report(cli, run_folder):
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"survivors": 6', '"survivors": 5', 1))
    code, _, err = cli("report", run_folder)
    assert code == 1
    assert "TAMPERED" in err
    assert "metrics.jsonl" in err.replace("\n", "")
    assert "no report was written" in err
    assert not (run_folder / "report").exists()


def test_a_result_whose_signature_does_not_hold_is_refused(cli, run_folder):
    path = run_folder / "attacks" / "on.json"
    envelope = json.loads(path.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(envelope))
    code, _, err = cli("report", run_folder)
    assert code == 1
    assert "on.json" in err.replace("\n", "")
    assert not (run_folder / "report").exists()


def test_every_format_says_how_its_file_is_called():
    assert {"html", "md", "json"} <= FORMATS.keys()
    for made in FORMATS.values():
        assert made.file_name("ja").endswith(f".{made.ending}")
        assert ("ja" in made.file_name("ja").split(".")) == made.spoken


def test_a_report_is_written_without_torch_and_matplotlib(run_folder):
    program = f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv = ["securefed", "report", sys.argv[1]]
from securefed.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(run_folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (run_folder / "report" / "report.en.html").is_file()
