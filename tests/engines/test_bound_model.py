"""What a round binds: all that a client is sent or told, the adapter's frozen part included."""

import numpy as np
import pytest
import torch
from stopped_runs import write

from securefed import Federation
from securefed.config import parse_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.workbench import Workbench

SCAFFOLD = {"local_optimizer": "sgd", "control_weight": 1.0}


def prepared(folder, training, sharing) -> tuple[Workbench, object]:
    return Federation.from_config(write(folder, training, lora={"sharing": sharing})).prepare()


@pytest.mark.parametrize("sharing", ["ffa", "fedit", "fedsb"])
def test_every_part_of_the_adapter_is_bound_whether_it_travels_or_not(tmp_path, sharing):
    bench, _ = prepared(tmp_path, {}, sharing)
    first = bench.model_hash()
    names = [n for n, _ in bench.model.named_parameters() if ".lora_" in n]
    assert len(names) == {"ffa": 8, "fedit": 8, "fedsb": 12}[sharing]
    for name in names:
        parameter = bench.model.get_parameter(name)
        with torch.no_grad():
            before = parameter.reshape(-1)[-1].clone()
            parameter.reshape(-1)[-1] = torch.nextafter(before, torch.tensor(torch.inf))
            assert bench.model_hash() != first
            parameter.reshape(-1)[-1] = before
    assert bench.model_hash() == first


def test_settings_weights_and_the_servers_control_are_bound(tmp_path):
    bench, _ = prepared(tmp_path, SCAFFOLD, "ffa")
    found = {bench.model_hash()}
    config, fingerprint = bench.config, bench.fingerprint
    values = config.model_dump(mode="json", exclude_none=True)
    values["lora"]["seed"] += 1  # which decides what a sparse round keeps, among other things
    bench.config = parse_config(values)
    found.add(bench.model_hash())
    bench.config, bench.fingerprint = config, "0" * 64
    found.add(bench.model_hash())
    bench.fingerprint = fingerprint
    bench.combining.opened(np.ones(bench.combining.length), number=1, share=1.0)
    found.add(bench.model_hash())
    assert len(found) == 4


def test_what_a_client_keeps_is_its_own_and_changes_nothing_that_is_bound(tmp_path):
    bench, settings = prepared(tmp_path, {}, "fedsa")
    first = bench.model_hash()
    bench.begin_round(1)
    for name in bench.clients:
        bench.contribution(settings, settings.sum_policy, name, 1, NoiseGenerator())
    bench.take_over(bench.clients, bench.clients)
    with bench.personal.of("site-0"):
        assert any(value.any() for value in bench.parts.kept().values())
    assert bench.model_hash() == first
