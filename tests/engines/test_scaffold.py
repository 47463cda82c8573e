"""Controls of SCAFFOLD that travel behind the update, in the same noised sum."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from stopped_runs import check_resumes_exactly, final, write

from securefed import Federation
from securefed.config import TrainingSection
from securefed.engines.client_state import ClientState
from securefed.engines.combining import Combining
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.privacy.clipping import L2Clip

D, STEPS, RATE = 5, 10, 0.05
SCAFFOLD = {"local_optimizer": "sgd", "control_weight": 1.0, "local_learning_rate": 0.5}


class Quadratics:
    """Clients with f_i(y) = sum_j a_ij (y_j - b_ij)^2 / 2: unlike curvatures, unlike minima."""

    def __init__(self, count: int = 4) -> None:
        rng = np.random.default_rng(0)
        self.names = [f"c{i}" for i in range(count)]
        self.curvatures = dict(zip(self.names, rng.uniform(0.2, 4.0, (count, D)), strict=True))
        self.minima = dict(zip(self.names, rng.normal(size=(count, D)), strict=True))

    @property
    def optimum(self) -> np.ndarray:
        """Of the plain mean of all f_i."""
        weighed = [self.curvatures[n] * self.minima[n] for n in self.names]
        return sum(weighed) / sum(self.curvatures.values())

    def delta(self, name: str, start: np.ndarray, correction: np.ndarray) -> np.ndarray:
        y = start.copy()
        for _ in range(STEPS):
            y -= RATE * (self.curvatures[name] * (y - self.minima[name]) + correction)
        return y - start


def combining(weight: float = 1.0, **changes) -> Combining:
    values = {"local_optimizer": "sgd", "control_weight": weight} | changes
    section = TrainingSection(local_steps=STEPS, local_learning_rate=RATE, **values)
    return Combining(section, seed=1, dimension=D)


def train(
    clients: Quadratics,
    ours: Combining,
    *,
    rounds: int,
    clip: float = 1e6,
    survivors: Callable[[int], list[str]] | None = None,
    noise: float = 0.0,
    weights: dict[str, float] | None = None,
    after: Callable[[int], None] = lambda number: None,
) -> list[np.ndarray]:
    """The server's points, by what the clip and a noised sum leave of the vectors."""
    rng = np.random.default_rng(5)
    weights = dict.fromkeys(clients.names, 1.0) if weights is None else weights
    x, points = np.zeros(D), []
    for number in range(1, rounds + 1):
        ours.state.forget_new()
        vectors = {}
        for name in clients.names:
            correction = ours.correction(name)
            delta = clients.delta(name, x, np.zeros(D) if correction is None else correction)
            vectors[name] = ours.vector(
                name, delta, weight=weights[name], clip_norm=clip, number=number
            )
        present = clients.names if survivors is None else survivors(number)
        total = sum(L2Clip(clip).clip(vectors[name]) for name in present)
        total = total + rng.normal(scale=noise, size=len(total)) if noise else total
        counted = sum(weights[name] for name in present)
        share = counted / sum(weights.values())
        x = x - ours.opened(-total / counted, number=number, share=share)
        ours.state.take_over(present)
        points.append(x)
        after(number)
    return points


def test_with_everyone_and_no_noise_it_is_the_papers_algorithm():
    """Karimireddy et al. 2020, Algorithm 1, option II, eta_g = 1, as it stands there."""
    clients = Quadratics()
    x, c = np.zeros(D), np.zeros(D)
    own = {name: np.zeros(D) for name in clients.names}
    expected = []
    for _ in range(30):
        deltas, changes = [], []
        for name in clients.names:
            delta = clients.delta(name, x, c - own[name])
            fresh = own[name] - c + (x - (x + delta)) / (STEPS * RATE)
            deltas.append(delta)
            changes.append(fresh - own[name])
            own[name] = fresh
        x = x + np.mean(deltas, axis=0)
        c = c + np.mean(changes, axis=0)
        expected.append(x)
    for weight in (0.1, 1.0, 7.0):
        np.testing.assert_allclose(
            train(clients, combining(weight), rounds=30), expected, rtol=1e-9, atol=1e-12
        )


def test_it_reaches_the_optimum_where_the_plain_mean_of_updates_does_not():
    clients = Quadratics()
    plain = Combining(
        TrainingSection(local_steps=STEPS, local_learning_rate=RATE), seed=1, dimension=D
    )
    away = [
        float(np.linalg.norm(train(clients, ours, rounds=300)[-1] - clients.optimum))
        for ours in (plain, combining())
    ]
    assert away[0] > 0.1
    assert away[1] < 1e-8


def test_the_servers_control_is_the_mean_of_what_clients_hold_however_much_is_clipped():
    clients, ours = Quadratics(), combining(2.0)
    weights = dict(zip(clients.names, (1.0, 0.5, 0.25, 1.0), strict=True))
    norms = []

    def check(number):
        held = {n: ours.state.of(n, "control") for n in clients.names}
        mean = sum(weights[n] * held[n] for n in clients.names) / sum(weights.values())
        np.testing.assert_allclose(ours.server_state()["control"].numpy(), mean, atol=1e-12)
        norms.append(max(np.linalg.norm(v) * weights[n] for n, v in held.items()))

    train(clients, ours, rounds=20, clip=0.3, weights=weights, after=check)
    longest = 0.3 / (2.0 * STEPS * RATE)  # lambda K eta w_i |c_i| <= C
    assert 0.9 * longest < max(norms) <= longest * (1 + 1e-9)


def test_the_pair_is_clipped_as_one_and_the_weight_says_what_the_control_takes_of_it():
    """In the first round the second half is -lambda times the first: a share of C of both."""
    clients = Quadratics()
    delta = clients.delta("c0", np.zeros(D), np.zeros(D))
    for weight in (0.5, 3.0):
        ours = combining(weight)
        vector = ours.vector("c0", delta, weight=1.0, clip_norm=1e6, number=1)
        np.testing.assert_allclose(vector, np.concatenate([delta, -weight * delta]), rtol=1e-12)
        passed = L2Clip(0.1).clip(vector)
        assert np.linalg.norm(passed) == pytest.approx(0.1)
        assert np.linalg.norm(passed[:D]) == pytest.approx(0.1 / np.hypot(1, weight))


def drift(rounds: int, noise: float, *, changes: bool) -> float:
    """Mean square over the last rounds of what lies between c and the mean of the c_i."""
    clients, ours = Quadratics(), combining()
    if changes:  # the paper's sum: of c_i+ - c_i
        held: dict[str, np.ndarray] = {n: np.zeros(D) for n in clients.names}
        c, x, rng, found = np.zeros(D), np.zeros(D), np.random.default_rng(5), []
        for _ in range(rounds):
            deltas, moved = [], []
            for name in clients.names:
                delta = clients.delta(name, x, c - held[name])
                fresh = held[name] - c - delta / (STEPS * RATE)
                deltas.append(delta)
                moved.append((fresh - held[name]) * STEPS * RATE)
                held[name] = fresh
            added = rng.normal(scale=noise, size=(2, D)) / len(clients.names)
            x = x + np.mean(deltas, axis=0) + added[0]
            c = c + (np.mean(moved, axis=0) + added[1]) / (STEPS * RATE)
            found.append(float(np.square(c - np.mean(list(held.values()), axis=0)).mean()))
        return float(np.mean(found[-20:]))
    found = []

    def note(number):
        mean = np.mean([ours.state.of(n, "control") for n in clients.names], axis=0)
        found.append(float(np.square(ours.server_state()["control"].numpy() - mean).mean()))

    train(clients, ours, rounds=rounds, noise=noise, after=note)
    return float(np.mean(found[-20:]))


def test_noise_does_not_add_up_between_the_controls():
    one_round = (0.01 / (4 * STEPS * RATE)) ** 2  # the noise of a single sum, in c
    assert drift(200, 0.01, changes=False) < 2 * one_round
    assert drift(200, 0.01, changes=True) > 20 * one_round


def test_who_is_not_in_the_sum_keeps_its_control():
    clients, ours = Quadratics(), combining()
    train(clients, ours, rounds=3, survivors=lambda n: clients.names[: 4 - n % 2])
    before = {n: ours.state.of(n, "control").copy() for n in clients.names}
    vector = np.ones(D)
    for name in clients.names:
        ours.vector(name, vector, weight=1.0, clip_norm=1.0, number=4)
    ours.state.forget_new()  # the attempt failed
    ours.state.take_over(clients.names)
    for name in clients.names:
        np.testing.assert_array_equal(ours.state.of(name, "control"), before[name])
    for name in clients.names:
        ours.vector(name, vector, weight=1.0, clip_norm=1.0, number=4)
    ours.state.take_over(clients.names[1:])
    np.testing.assert_array_equal(ours.state.of("c0", "control"), before["c0"])
    assert not np.array_equal(ours.state.of("c1", "control"), before["c1"])


# -- whole runs ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_controls_of_clients_and_server(tmp_path, monkeypatch):
    forgets = [
        (ClientState, "load", lambda self, *_: None),
        (Combining, "restore", lambda self, _: None),
    ]
    check_resumes_exactly(tmp_path, SCAFFOLD, forgets, monkeypatch)


CLIENT_LEVEL = {"privacy": {"unit": "client", "clip_norm": 0.5, "noise_multiplier": 4.0}}


def test_under_privacy_one_sum_of_twice_the_length_is_charged_once(tmp_path):
    costs = {}
    for kind, training in (("plain", {"local_optimizer": "sgd"}), ("scaffold", SCAFFOLD)):
        path = write(tmp_path / kind, training | {"rounds": 2}, **CLIENT_LEVEL)
        result = Federation.from_config(path).run(tmp_path / kind / "out")
        assert verify_run(result.folder).finished
        assert result.charges == 2
        genesis = read_ledger(result.folder / "ledger.jsonl")[0].body["privacy"]
        costs[kind] = (
            genesis["dimension"] * genesis["bits"] / 8,
            json.loads((result.folder / "costs.json").read_text())["bytes_up_per_client_and_round"],
            result.guarantees["server"].epsilon,
        )
    assert costs["scaffold"][0] == 2 * costs["plain"][0]
    # The vector doubles; keys and shares do not.
    assert costs["scaffold"][1] - costs["plain"][1] == pytest.approx(costs["plain"][0], abs=1)
    assert costs["scaffold"][2] == pytest.approx(costs["plain"][2], rel=0.05)


def test_a_resumed_run_needs_every_clients_own_file(tmp_path):
    path = write(tmp_path, SCAFFOLD | {"rounds": 2})
    out = tmp_path / "out"
    Federation.from_config(path).run(out)
    assert np.isfinite(final(out, 2)).all()
    files = sorted(p.relative_to(out / "personal").as_posix() for p in out.glob("personal/*/*"))
    assert files == [f"site-{i}/state-{n}.safetensors" for i in range(6) for n in (1, 2)]
    state = ClientState({"control": 3})
    with pytest.raises(LedgerTampered, match="other vectors"):
        state.load(out / "personal", ["site-0"], 2)
    with pytest.raises(LedgerTampered, match="site-9"):
        state.load(out / "personal", ["site-9"], 2)


def test_a_client_alone_and_an_unprotected_run_are_compared_without_controls_or_with_them(tmp_path):
    from securefed.engines.compare import clients_alone, unprotected
    from securefed.engines.events import Silent

    federation = Federation.from_config(write(tmp_path, SCAFFOLD | {"rounds": 1}))
    assert np.isfinite(clients_alone(federation, Silent()).nll)
    assert np.isfinite(unprotected(federation, Silent()).nll)


def test_who_is_sent_another_control_is_in_no_sum_with_the_rest():
    one, other = combining(), combining()
    assert one.fingerprint() == other.fingerprint() != b""
    other.opened(np.ones(2 * D), number=1, share=1.0)
    assert one.fingerprint() != other.fingerprint()
    with pytest.raises(ConfigError, match="control"):
        one.restore({})
