"""The demo's targets, on the real model and texts (pytest -m slow tests/test_demo.py)."""

import json
import math
from pathlib import Path

import pytest

from securefed import Federation
from securefed.config import load_config, parse_config
from securefed.engines.verify import verify_run

PACKAGE = Path(__file__).parents[1] / "securefed"


@pytest.mark.parametrize("name", ["demo.toml", "demo-all.toml"])
def test_the_demos_run_files_are_valid(name):
    config = load_config(PACKAGE / name)
    assert config.privacy.unit == "example"
    assert config.privacy.mechanism == "distributed"
    assert config.cohort.simulated_dropouts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epsilon"), [("demo.toml", 5.0), ("demo-all.toml", 1.0)])
def test_the_demo_lowers_perplexity_by_a_quarter_at_the_stated_epsilon(name, epsilon, tmp_path):
    result = Federation.from_config(PACKAGE / name).run(tmp_path / "out")
    assert result.after.perplexity <= 0.75 * result.before.perplexity
    statement = result.guarantees["server"]
    assert math.isfinite(statement.epsilon)
    assert statement.epsilon <= epsilon
    assert statement.delta == 1e-5
    assert any(event.survivors < event.cohort for event in result.events)
    assert verify_run(result.folder).finished
    costs = json.loads((result.folder / "costs.json").read_text())
    assert costs["bytes_up_per_client_and_round"] < 4.5 * costs["trainable_parameters"] + 100_000


@pytest.mark.slow
def test_the_demo_reaches_the_same_with_encrypted_sums(tmp_path):
    demo = load_config(PACKAGE / "demo.toml").model_dump(mode="json", exclude_none=True)
    config = parse_config(demo | {"aggregation": {"kind": "bfv"}})
    result = Federation(config).run(tmp_path / "out")
    assert result.after.perplexity <= 0.75 * result.before.perplexity
    assert result.guarantees["server"].epsilon <= 5.0
    assert "the decryptor never does" in result.guarantees["server"].trust
    assert verify_run(result.folder).finished
    encryption = json.loads((result.folder / "costs.json").read_text())["encryption"]
    assert encryption["bytes_per_value"] < 15  # four whole ciphertexts for 23,040 values
