"""examples/guides/faults.md says what the faults came to when they were tried last."""

import ast
from pathlib import Path

from fault_matrix import read_rows, table

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "examples" / "guides" / "faults.md"
RESULTS = ROOT / "examples" / "guides" / "results" / "faults.jsonl"
FILES = [ROOT / "tests" / "engines" / name for name in
         ("test_fault_matrix.py", "test_deployment_faults.py", "test_hosts.py")]  # fmt: skip


def test_its_table_is_that_of_the_results():
    assert "\n".join(table(read_rows(RESULTS))) in GUIDE.read_text(encoding="utf-8")


def test_every_fault_that_is_tried_is_in_it_and_held():
    rows = read_rows(RESULTS)
    assert all(row["outcome"] == "passed" and row["seen"] for row in rows)
    tried = {
        node.name
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "fault" in {each.arg for each in node.args.args}
    }
    assert tried == {row["test"].partition("[")[0] for row in rows}
