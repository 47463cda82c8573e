"""Which trials a pilot file asks for."""

import pytest
import tomli_w

from securefed.config import PilotConfig, RunConfig, load_pilot
from securefed.errors import ConfigError
from securefed.pilot.baselines import bare
from securefed.pilot.design import BEYOND, design

EVERY = {
    "rank": [2, 4, 8],
    "sharing": ["ffa", "fedit"],
    "bits": [24],
    "epsilon": [2.0, 8.0],
    "aggregation": ["pairwise", "bfv", "ckks"],
}
BASELINES = ["clients alone", "pooled training", "full fine-tuning"]
PROTECTIONS = ["no protection", "clip alone", "clip and noise", "masks alone", "encryption alone"]


def pilot(public: bool = True, **sections) -> PilotConfig:
    paid = {} if public else {"budget": {"epsilon": 20.0}}
    return PilotConfig(run="run.toml", data={"public": public}, **paid, **sections)


def run(**sections) -> RunConfig:
    return RunConfig.model_validate(sections)


def arms(planned) -> dict:
    return {each.name: each for each in planned}


def test_the_base_comes_first_then_baselines_protections_and_one_key_at_a_time():
    planned = design(pilot(sweep=EVERY), run())
    assert [each.name for each in planned] == [
        "base",
        *BASELINES,
        *PROTECTIONS,
        "bits = 24",
        "epsilon = 2",
        "epsilon = 8",
        "aggregation = bfv",
        "aggregation = ckks",
        "rank = 2",
        "rank = 8",
        "sharing = fedit",
    ]
    assert [each.number for each in planned] == list(range(1, len(planned) + 1))
    assert [each.first for each in planned] == [True] + [False] * (len(planned) - 1)
    assert len({each.folder for each in planned}) == len(planned)
    assert planned[0].changes == {}
    groups = [each.group for each in planned]
    assert groups == ["base"] + ["baseline"] * 3 + ["protection"] * 5 + ["sweep"] * 8


def test_every_trial_differs_from_the_base_in_what_it_names_and_in_nothing_else():
    base = run(budget={"epsilon": 3.0})
    planned = design(pilot(sweep=EVERY), base)
    before = base.model_dump(mode="json")
    for each in planned:
        after = each.config(base, show_clients=False).model_dump(mode="json")
        for section, keys in before.items():
            for key, value in keys.items():
                path, found = f"{section}.{key}", after[section][key]
                if path not in each.changes:
                    assert found == value, (each.name, path)
                elif each.changes[path] is not None:  # else it is left out
                    assert found == each.changes[path] != value, (each.name, path)


def test_a_rank_keeps_its_scale_and_an_epsilon_takes_the_noises_place():
    base = run(lora={"rank": 4, "alpha": 6.0}, budget={"epsilon": 3.0})
    found = arms(design(pilot(sweep=EVERY), base))
    assert found["rank = 8"].changes == {"lora.rank": 8, "lora.alpha": 12.0}
    assert found["epsilon = 2"].changes == {
        "privacy.target_epsilon": 2.0,
        "privacy.noise_multiplier": None,
        "budget.epsilon": None,
    }
    config = found["epsilon = 2"].config(base, show_clients=False)
    assert (config.privacy.target_epsilon, config.privacy.noise_multiplier) == (2.0, None)


def test_protections_alone_differ_from_no_protection_in_how_the_sum_is_hidden():
    base = run()
    found = arms(design(pilot(), base))
    configs = {name: found[name].config(base, show_clients=True) for name in PROTECTIONS}
    bare = configs["no protection"]
    assert (bare.privacy.mechanism, bare.aggregation.kind) == ("none", "plaintext")
    assert bare.privacy.clip_norm == BEYOND * base.privacy.clip_norm
    for name, kind in (("masks alone", "pairwise"), ("encryption alone", "bfv")):
        assert configs[name].aggregation.kind == kind
        assert configs[name].model_copy(update={"aggregation": bare.aggregation}) == bare
    assert configs["clip alone"].privacy.clip_norm == base.privacy.clip_norm
    assert configs["clip alone"].privacy.mechanism == "none"
    noise = configs["clip and noise"]
    assert noise.privacy == base.privacy
    assert noise.aggregation.kind == "plaintext"


def test_whole_clients_updates_are_clipped_where_runs_without_noise_clip_them():
    base = run(privacy={"unit": "client", "clip_norm": 2.0})
    found = arms(design(pilot(), base))
    clip = found["clip alone"].config(base, show_clients=True).privacy
    bare = found["no protection"].config(base, show_clients=True).privacy
    assert (clip.update_clip_norm, bare.update_clip_norm) == (2.0, 2.0 * BEYOND)


def test_noise_in_the_clear_takes_the_multiplier_that_the_base_run_found():
    base = run(
        privacy={"target_epsilon": 4.0, "remove_excess_noise": True},
        aggregation={"kind": "bfv", "masked": True},
    )
    noise = arms(design(pilot(), base))["clip and noise"]
    config = noise.config(base, show_clients=True, noise=1.25)
    assert config.privacy.noise_multiplier == 1.25
    assert config.privacy.target_epsilon is None
    assert not config.privacy.remove_excess_noise
    assert config.aggregation.kind == "plaintext"


@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": {"mechanism": "local", "unit": "example"}},
        {"privacy": {"mechanism": "central", "sampling": "cyclic"}},
        {"privacy": {"unit": "user"}, "data": {"user_field": "who"}},
        {"privacy": {"adaptive_clip": {}}},
        {"aggregation": {"kind": "bfv", "masked": True, "bits": 20}},
        {"aggregation": {"kind": "ckks"}},
        {"privacy": {"unit": "client"}, "lora": {"sharing": "fedsa"}},
        {"training": {"sparsify": "random", "keep_fraction": 0.5}},
    ],
    ids=str,
)
def test_whatever_the_run_is_all_of_its_protections_can_be_asked_for(sections):
    base = run(**sections)
    for each in design(pilot(), base):
        each.config(base, show_clients=True)


def test_what_a_trial_leaves_out_of_the_run_is_said_there_and_nowhere_else():
    base = run(training={"sparsify": "random", "keep_fraction": 0.5})
    for name, each in arms(design(pilot(), base)).items():
        assert ("without sparsification" in each.why) == (name in BASELINES), name
        kept = each.config(base, show_clients=True).training.sparsify
        assert kept == "random"  # baselines leave it out themselves (``baselines.bare``)
    assert bare(base).training.sparsify == "none"
    cyclic = run(privacy={"mechanism": "central", "sampling": "cyclic"})
    for name, each in arms(design(pilot(), cyclic)).items():
        drawn = each.config(cyclic, show_clients=True).privacy.sampling == "poisson"
        assert ("are drawn" in each.why) == (drawn or name in BASELINES), name


def test_a_run_without_noise_has_none_to_show_alone():
    found = arms(design(pilot(), run(privacy={"mechanism": "none"})))
    assert "no noise" in found["clip and noise"].refused


def test_private_data_refuses_whatever_trains_or_sums_without_noise():
    planned = design(pilot(public=False, sweep=EVERY), run())
    refused = {each.name for each in planned if each.refused}
    assert refused == {*BASELINES, *PROTECTIONS}
    assert all("data.public = false" in each.refused for each in planned if each.refused)


def test_seeds_repeat_all_of_it_with_other_seeds_of_the_adapter():
    base = run(lora={"seed": 2**63 - 1})
    planned = design(pilot(seeds=2, sweep={"rank": [8]}), base)
    half = len(planned) // 2
    assert [each.name for each in planned[:half]] == [each.name for each in planned[half:]]
    assert {each.seed for each in planned[:half]} == {2**63 - 1}
    assert {each.seed for each in planned[half:]} == {0}
    assert planned[half].config(base, show_clients=False).lora.seed == 0
    assert len({each.folder for each in planned}) == len(planned)


# -- the file ------------------------------------------------------------------------------


def test_a_pilot_file_is_read_with_its_run_file_beside_it(tmp_path):
    path = tmp_path / "pilot.toml"
    path.write_text(tomli_w.dumps({"run": "mail.toml", "data": {"public": True}}))
    assert load_pilot(path).run == tmp_path / "mail.toml"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sweep": {"ranks": [2]}}, ["sweep.ranks", "did you mean rank?", "allowed: rank, "]),
        ({"minutes": 0}, ["minutes = 0: must be a number > 0"]),
        ({"sweep": {"rank": [2, 2]}}, ["rank = [2, 2]", "may be named once"]),
        ({"data": {"public": False}}, ["budget.epsilon = None", "data.public = false"]),
        ({"run": None}, ["run: is missing; it must be a text"]),
    ],
    ids=["unknown", "range", "twice", "unpaid", "missing"],
)
def test_what_is_wrong_in_a_pilot_file_is_named(tmp_path, values, words):
    values = {"run": "run.toml", "data": {"public": True}} | values
    path = tmp_path / "pilot.toml"
    path.write_text(tomli_w.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ConfigError) as found:
        load_pilot(path)
    assert all(word in str(found.value) for word in words), found.value


def test_a_pilot_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pilot file .*no\.toml: cannot be read \(No such file"):
        load_pilot(tmp_path / "no.toml")
    (tmp_path / "odd.toml").write_text("run =")
    with pytest.raises(ConfigError, match=r"pilot file .*odd\.toml: is not TOML"):
        load_pilot(tmp_path / "odd.toml")
