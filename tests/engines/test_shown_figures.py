"""A single client's held-out figure: where it is written, and where it is not."""

import json

import pytest
from tiny import write_run

from securefed.engines.simulation import Federation

FOUND = "shown.json"


def values(found: object) -> set[float]:
    """Every number in a JSON value."""
    if isinstance(found, dict):
        return values(list(found.values()))
    if isinstance(found, list):
        return {number for each in found for number in values(each)}
    return {float(found)} if isinstance(found, float) else set()


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "left out"])
def test_a_client_s_own_figure_is_in_a_run_folder_only_where_the_run_file_asks_for_it(
    tmp_path, asked
):
    path = write_run(
        tmp_path,
        training={"rounds": 1},
        evaluation={"max_windows": 4, "window_tokens": 8, "show_clients": asked},
    )
    result = Federation.from_config(path).run(tmp_path / "out")
    assert (result.folder / FOUND).exists() == asked
    assert (result.after.worst is not None) == asked
    if not asked:
        return
    single = values(json.loads((result.folder / FOUND).read_text()))
    assert len(single) > 5  # the worst and five quantiles, before and after
    rest = [
        values(json.loads(line))
        for name in ("ledger.jsonl", "metrics.jsonl")
        for line in (result.folder / name).read_text().splitlines()
    ]
    assert not single & set().union(*rest)
