"""Runs that combine updates by more than their plain mean."""

import numpy as np
import pytest
from stopped_runs import check_resumes_exactly, final, write

from securefed import Federation
from securefed.config import TrainingSection, parse_config
from securefed.engines.events import Silent
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.update_codec import UpdateCodec
from securefed.federation.weights import client_weights
from securefed.privacy.accounting import ADVERSARIES


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_servers_moments(tmp_path, monkeypatch):
    restore = ServerOptimizer.restore

    def bare(self, tensors):
        restore(self, {"parameters": tensors["parameters"]})

    training = {"server_optimizer": "yogi", "server_learning_rate": 0.05}
    forgets = [(ServerOptimizer, "restore", bare)]
    check_resumes_exactly(tmp_path, training, forgets, monkeypatch)


# -- weights ------------------------------------------------------------------------------

SIZES = {"a": 10, "b": 20, "c": 900}


def weighed(**changes) -> TrainingSection:
    return TrainingSection(**({"client_weights": "examples", "max_weight_ratio": 4.0} | changes))


def test_weights_are_capped_and_the_largest_is_one():
    assert client_weights(weighed(), SIZES) == {"a": 0.25, "b": 0.5, "c": 1.0}
    assert client_weights(weighed(max_weight_ratio=1e6), SIZES)["a"] == pytest.approx(1 / 90)
    assert set(client_weights(weighed(max_weight_ratio=1.0), SIZES).values()) == {1.0}
    assert set(client_weights(TrainingSection(), SIZES).values()) == {1.0}


CLIENT_LEVEL = {
    "privacy": {"unit": "client", "clip_norm": 1.0, "corrupt_fraction": 0.0},
    "training": {"client_weights": "examples", "max_weight_ratio": 4.0},
}


def test_a_sum_is_divided_by_the_survivors_weights_and_the_statement_says_what_is_public():
    settings = Settings(parse_config(CLIENT_LEVEL), sizes=SIZES, dimension=2)
    total = np.array([1.5, 3.0])
    np.testing.assert_allclose(settings.gradient(total, ("b", "c")), -total / 1.5)
    values = CLIENT_LEVEL | {"training": {}}
    uniform = Settings(parse_config(values), sizes=SIZES, dimension=2)
    np.testing.assert_allclose(uniform.gradient(total, ("b", "c")), -total / 2)
    for who in ADVERSARIES:
        weighted = settings.guarantee(who, 3)
        assert any("decides its weight" in line for line in weighted.assumptions)
        assert not any("weight" in line for line in uniform.guarantee(who, 3).assumptions)
        assert weighted.epsilon == uniform.guarantee(who, 3).epsilon
    # Adaptive clipping counts clients, not their weights.
    values = CLIENT_LEVEL | {"privacy": CLIENT_LEVEL["privacy"] | {"adaptive_clip": {}}}
    adaptive = Settings(parse_config(values), sizes=SIZES, dimension=2)
    assert adaptive.unclipped_fraction(0.5, ("b", "c")) == pytest.approx(0.75)


def test_the_update_is_weighed_before_it_is_clipped(tmp_path, monkeypatch):
    """What a client hands to the codec is w times its delta, whatever w is; the codec clips it."""
    seen: dict[str, list[np.ndarray]] = {"plain": [], "weighed": []}
    encode = UpdateCodec.encode_update

    for kind in seen:
        path = write(tmp_path / kind, {"rounds": 1} | (
            {"client_weights": "examples", "max_weight_ratio": 2.0} if kind == "weighed" else {}
        ))  # fmt: skip
        text = (tmp_path / kind / "data" / "site-0.txt").read_text()
        (tmp_path / kind / "data" / "site-1.txt").write_text(text + "\n" + text + "\n" + text)

        def watch(self, update, generator, *, on_zeroed=None, kind=kind):
            if self.plan.dimension > 10:  # held-out figures travel the same way
                seen[kind].append(np.array(update, dtype=np.float64))
            return encode(self, update, generator)

        monkeypatch.setattr(UpdateCodec, "encode_update", watch)
        messages = []
        Federation.from_config(path, observer=Told(messages)).run(tmp_path / kind / "out")
        assert any("counts by its number" in m for m in messages) == (kind == "weighed")
        assert verify_run(tmp_path / kind / "out").finished
    for plain, weighted in zip(seen["plain"], seen["weighed"], strict=True):
        ratio = np.linalg.norm(weighted) / np.linalg.norm(plain)
        np.testing.assert_allclose(weighted, ratio * plain, rtol=1e-5)
    ratios = [
        np.linalg.norm(w) / np.linalg.norm(p)
        for p, w in zip(seen["plain"], seen["weighed"], strict=True)
    ]
    assert ratios == pytest.approx([0.5, 1.0, 0.5, 0.5, 0.5, 0.5])
    delta = final(tmp_path / "weighed" / "out", 1)
    np.testing.assert_allclose(delta, sum(seen["weighed"]) / 3.5, atol=1e-6)


class Told(Silent):
    def __init__(self, messages: list[str]) -> None:
        self._messages = messages

    def message(self, text: str) -> None:
        self._messages.append(text)


@pytest.mark.parametrize(
    ("sharing", "training"),
    [
        ("rolora", {"sparsify": "random", "keep_fraction": 0.25, "server_momentum": 0.9}),
        pytest.param(
            "fedsvd",
            {"sparsify": "random", "keep_fraction": 0.25, "server_optimizer": "yogi"},
            marks=pytest.mark.slow,
        ),
        ("fedsvd", {"server_optimizer": "adagrad", "client_weights": "examples"}),
        pytest.param(
            "fedit", {"local_optimizer": "sgd", "control_weight": 1.0}, marks=pytest.mark.slow
        ),
        ("fedsa", {"proximal_mu": 0.1, "server_momentum": 0.9}),
    ],
)
def test_ways_to_combine_go_with_ways_to_share(tmp_path, sharing, training):
    path = write(tmp_path, {"rounds": 3} | training, lora={"sharing": sharing})
    result = Federation.from_config(path).run(tmp_path / "out")
    assert np.isfinite(result.after.nll)
    assert result.after.nll != result.before.nll
    assert verify_run(result.folder).finished


SGD = {"local_optimizer": "sgd"}
RANDOM = {"sparsify": "random", "keep_fraction": 0.5}


@pytest.mark.parametrize(
    ("privacy", "training", "words"),
    [
        ({"unit": "example"}, {"client_weights": "examples"}, "counts by how many it has already"),
        ({"unit": "user"}, {"client_weights": "examples"}, "is not public there"),
        ({"unit": "user", "mechanism": "local"}, {"client_weights": "examples"}, "not public"),
        ({"unit": "client"}, {"client_weights": "fedadp"}, "compares single clients' updates"),
        ({"unit": "client"}, {"client_weights": "qfedavg"}, "by its own loss"),
        ({"unit": "client"}, {"server_optimizer": "krum"}, "compares single clients' updates"),
        ({"unit": "client"}, {"client_weights": "size"}, "'uniform' or 'examples'"),
        ({"unit": "client"}, {"max_weight_ratio": 0.5}, "max_weight_ratio"),
        ({"unit": "example"}, {"proximal_mu": 0.1}, "there are no local steps"),
        ({"unit": "user", "mechanism": "none"}, {"proximal_mu": 0.1}, "there are no local steps"),
        ({"unit": "client"}, {"proximal_mu": 0.1, "local_steps": 1}, "where the pull is zero"),
        ({"unit": "client"}, {"proximal_mu": 0.1, "trainer": "a:B"}, "takes its own"),
        ({"unit": "example"}, SGD, "there are no local steps"),
        ({"unit": "example", "mechanism": "local"}, SGD, "takes Adam steps"),
        ({"unit": "client"}, {"control_weight": 1.0}, "local_optimizer = 'adamw'"),
        ({"unit": "client"}, SGD | RANDOM | {"control_weight": 1.0}, "sparsify = 'random'"),
        ({"unit": "client"}, SGD | {"control_weight": 1.0, "proximal_mu": 0.1}, "proximal_mu"),
        ({"unit": "client"}, SGD | {"control_weight": 0.0}, "control_weight"),
        ({"unit": "example"}, SGD | {"control_weight": 1.0}, "would carry what was drawn once"),
        ({"unit": "user"}, SGD | {"control_weight": 1.0}, "would carry what was drawn once"),
        ({"unit": "example"}, RANDOM | {"error_feedback": True}, "carry what was drawn once"),
        ({"unit": "user"}, RANDOM | {"error_feedback": True}, "carry what was drawn once"),
        ({"unit": "client"}, {"error_feedback": True}, "nothing is cut off"),
        ({"unit": "client"}, {"sparsify": "random"}, "keep_fraction"),
        ({"unit": "client"}, {"keep_fraction": 0.5}, "keep_fraction"),
        ({"unit": "client"}, {"sparsify": "top_k"}, "depend on each client's data"),
        ({"mechanism": "central", "sampling": "cyclic"}, RANDOM, "the same coordinates"),
    ],
)
def test_what_shows_too_much_or_does_nothing_is_refused_by_name(privacy, training, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"privacy": privacy, "training": training})


@pytest.mark.parametrize(
    ("sharing", "training", "words"),
    [
        ("rolora", SGD | {"control_weight": 1.0}, "of coordinates"),
        ("fedsvd", SGD | {"control_weight": 1.0}, "or of a basis"),
        ("fedsa", SGD | {"control_weight": 1.0}, "at a B of its own"),
        ("rolora", RANDOM | {"error_feedback": True}, "of coordinates"),
        ("fedsvd", RANDOM | {"error_feedback": True}, "or of a basis"),
    ],
)
def test_what_a_client_carries_over_must_fit_the_next_round(sharing, training, words):
    values = {"privacy": {"unit": "client"}, "lora": {"sharing": sharing}, "training": training}
    with pytest.raises(ConfigError, match=words):
        parse_config(values)


def test_local_dp_sgd_on_examples_may_be_weighed_by_their_public_number():
    parse_config(
        {
            "privacy": {"unit": "example", "mechanism": "local"},
            "training": {"client_weights": "examples"},
        }
    )
