"""Hostile servers against the protocol as it is, and against it with one check removed."""

import json
import math

import attacked
import pytest

from securefed.attacks import views
from securefed.attacks.base import Guess
from securefed.auditing.games import AS_IT_IS, GAMES, PLANTED, play, together
from securefed.auditing.games.parties import BARE, NOISED, Parties, given
from securefed.auditing.games.planted import _refusal, planted_model
from securefed.auditing.games.rounds import same_victim
from securefed.errors import ConfigError

MOST = {"planted-model": 7 / 8}
"""A language model's last token is a target only: no gradient shows it."""


@pytest.fixture(scope="module")
def benches():
    """Four clients: rank 8 shows one client's ten inputs, and not four clients' 34."""
    encoder = attacked.bench("bert", attacked.setup("bert", clients=4))
    decoder = attacked.bench(
        "llama",
        attacked.setup(
            "llama", clients=4, targets=("v_proj",), sharing="ffa", turn=1, rank=4, warm=0.0
        ),
    )
    return {name: decoder if name in PLANTED else encoder for name in GAMES}


@pytest.mark.parametrize("name", GAMES)
def test_with_the_check_removed_the_server_reads_the_victims_text(name, benches):
    result = play(name, benches[name], 1, weakened=True)
    assert result.refused_by is None
    assert result.recovered >= MOST.get(name, 1.0)
    assert result.control == 0.0
    assert result.protocol.startswith("check removed: ")


REFUSALS = {
    "planted-model": ("ConfigError", "model.fingerprint = "),
    "watched-rounds": ("BudgetExceeded", "nothing was sent"),
    "pasquini": ("RemoteProtocolError", "does not verify"),
    "small-cohort": ("LocalProtocolError", "min_clients"),
    "same-victim": ("BudgetExceeded", "nothing was sent"),
    "random-cohorts": ("BudgetExceeded", "nothing was sent"),
    "retry": ("BudgetExceeded", "nothing was sent"),
    "two-lists": ("RemoteProtocolError", "the round is done"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_as_it_is_a_client_refuses_by_name_and_nothing_is_read(name, benches):
    result = play(name, benches[name], 1, weakened=False)
    error, message = REFUSALS[name]
    assert result.refused_by is not None
    assert result.refused_by.error == error
    assert message in result.refused_by.message
    assert result.recovered == 0.0
    assert (result.protocol, result.refused) == (AS_IT_IS, 1)


@pytest.mark.parametrize("name", ["planted-model", "pasquini"])
def test_the_honest_weights_are_refused_by_nobody(name, benches):
    assert _refusal(Parties(benches[name], 1), {}) is None


def test_only_the_victims_text_counts_as_read_and_only_the_unseen_one_as_control(benches):
    parties = Parties(benches["pasquini"], 1)
    read = [parties.scored(Guess((parties.texts[name],))) for name in parties.names]
    assert read == [(1.0, 0.0), *[(0.0, 0.0)] * 3]
    assert parties.scored(Guess((parties._unseen,))) == (0.0, 1.0)


def test_how_long_the_texts_in_a_round_are_is_not_told_to_the_server(benches):
    texts = [tuple(range(5, 9))] * 5 + [tuple(range(5, 15))]
    parties = Parties(benches["pasquini"], 1, texts)
    told = []

    class Attack:
        def run(self, view, public, *, generator, limits):
            told.append(limits.max_tokens)

    parties.guessed(None, parties.session(), Attack())
    assert told == [12]


def test_sybils_are_not_refused_and_leave_the_victim_its_own_share_of_the_noise(benches):
    result = play("sybils", benches["sybils"], 1, weakened=False)
    figures = result.figures
    assert result.refused_by is None
    assert result.recovered == 0.0
    # Four clients and a tenth of them corrupt, rounded down, are none; three were.
    assert figures["sybils_assumed"] == 0
    assert figures["noise_multiplier_of_own_share"] == pytest.approx(1 / math.sqrt(3))
    assert figures["epsilon_of_own_share"] > 1.5 * figures["epsilon_claimed"]


def test_the_sum_of_honest_clients_shows_no_text_at_this_rank(benches):
    parties = Parties(benches["pasquini"], 1)
    session = parties.session(policy=BARE)
    server = parties.opened(session, parties.updates())
    assert parties.read(views.opened_sum(server), session) == (0.0, 0.0)


def test_without_an_account_noise_alone_is_left_and_the_epsilon_says_how_much(benches):
    parties = Parties(benches["same-victim"], 1)
    result = same_victim(parties, 1, weakened=True, without=NOISED)
    assert result.protocol == "check removed: account"
    assert result.refused_by is None
    assert result.figures["sums_opened"] == 4
    assert result.recovered == 0.0
    assert result.figures["epsilon_of_all"] > 2 * result.figures["epsilon_of_one"]


def test_the_same_planted_model_for_everybody_is_refused_by_nobody_and_noise_bounds_it(benches):
    parties = Parties(benches["planted-model"], 1)
    bare = planted_model(parties, 1, weakened=True)
    noised = planted_model(parties, 1, weakened=True, policy=NOISED)
    assert bare.figures["set_recall_of_all"] > 0.8
    assert bare.figures["set_precision"] > 0.9
    assert bare.refused_by is noised.refused_by is None
    assert noised.recovered == 0.0


def test_noise_leaves_of_a_planted_question_what_the_epsilon_is_computed_from(benches):
    bench = benches["watched-token"]
    result = together([play("watched-token", bench, seed, weakened=False) for seed in range(4)])
    assert result.refused_by is None
    expected = result.figures["deviations_expected"]
    # Noise of four clients, three of whom have noise_multiplier 1 together.
    assert expected == pytest.approx(math.sqrt(3 / 4), rel=0.01)
    assert result.figures["deviations"] < expected + 4 / math.sqrt(4)
    assert result.recovered <= 0.25


@pytest.mark.parametrize("name", ["pasquini", "planted-model"])
def test_a_game_leaves_the_model_as_it_was(name, benches):
    model = benches[name].model
    before = given(model)
    play(name, benches[name], 2, weakened=True)
    assert given(model) == before


def test_trials_are_put_together_with_an_interval_and_written_as_figures(benches):
    trials = [play("small-cohort", benches["pasquini"], seed, weakened=True) for seed in (3, 4)]
    both = together(trials)
    assert (both.trials, both.seeds, both.recovered) == (2, (3, 4), 1.0)
    assert both.interval == pytest.approx((0.158, 1.0), abs=1e-3)  # Clopper and Pearson, 2 of 2
    line = json.loads(json.dumps(both.as_json(), allow_nan=False))
    assert set(line["figures"]) == {"clients", "min_clients"}
    other = play("small-cohort", benches["pasquini"], 3, weakened=False)
    with pytest.raises(ConfigError, match="2 games or protocols"):
        together([*trials, other])


def test_what_no_game_can_be_played_with_is_refused(benches):
    with pytest.raises(ConfigError, match="game = 'chess'"):
        play("chess", benches["pasquini"], 1, weakened=True)
    with pytest.raises(ConfigError, match="at least 4"):
        play("pasquini", attacked.bench("bert", attacked.setup("bert")), 1, weakened=True)
    with pytest.raises(ConfigError, match="texts: 1; 5 are needed"):
        play("pasquini", benches["pasquini"], 1, weakened=True, texts=[(2, 5, 3)])
    decoder = attacked.bench("llama", attacked.setup("llama", clients=4, targets=("q_proj",)))
    with pytest.raises(ConfigError, match="target_modules"):
        play("planted-model", decoder, 1, weakened=True)
