"""A run with users as the unit: from a folder with a user field to a verified folder."""

import json
import math
import random
from itertools import count

import pytest
from tiny import WORDS, write_run

from securefed import Federation
from securefed.config import load_config
from securefed.engines.run import Run
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, DataError
from securefed.evidence.ledger import read_ledger
from securefed.training.dp_sgd import PerExampleGradients

CLIENTS, USERS = 5, 8


def write_users(folder, *, heavy=12):
    """Five clients' records; each has users 0 to 7, the first of them with many records."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in range(CLIENTS):
        rng = random.Random(client)
        records = []
        for user in range(USERS):
            for _ in range(heavy if user == 0 else 1 + user % 3):
                words = [rng.choice(WORDS[:8]) for _ in range(20)]
                records.append({"text": " ".join(words), "patient": f"p{user}"})
        rng.shuffle(records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"site-{client}.jsonl").write_text(lines)
    return folder


def users_run(tmp_path, **sections):
    data = {"source": str(write_users(tmp_path / "users")), "user_field": "patient"}
    ours = {
        "data": data | sections.pop("data", {}),
        "privacy": {
            "unit": "user",
            "expected_batch": 12,
            "dropout_fraction": 0.2,
            "noise_multiplier": 4.0,
        }
        | sections.pop("privacy", {}),
        "training": {"rounds": 3} | sections.pop("training", {}),
    }
    return write_run(tmp_path, **ours, **sections)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")
    path = users_run(folder, training={"examples_per_user": 4})
    return Federation.from_config(path).run(folder / "out")


def test_a_run_counts_users_and_says_so(finished):
    genesis = read_ledger(finished.folder / "ledger.jsonl")[0].body
    # One of eight users is held out whole; the other seven count, whatever they hold.
    assert set(genesis["client_sizes"].values()) == {USERS - 1}
    assert genesis["privacy"]["unit"] == "user"
    assert genesis["privacy"]["sampling_probability"] == 12 / (CLIENTS * (USERS - 1))
    statement = finished.guarantees["server"]
    assert math.isfinite(statement.epsilon)
    assert statement.unit.startswith("one user: one patient at one client")
    assert "zero-out of one user" in statement.adjacency


def test_it_verifies_and_names_the_user(finished):
    verdict = verify_run(finished.folder)
    assert verdict.finished
    text = "\n".join(verdict.lines)
    assert "(one patient at one client, delta 1e-05), recomputed" in text
    loaded = load_config(finished.folder / "config.toml")
    assert (loaded.data.user_field, loaded.training.examples_per_user) == ("patient", 4)


def test_no_user_s_key_stands_in_the_run_folder(finished):
    written = [
        path for path in finished.folder.rglob("*") if path.suffix in (".jsonl", ".json", ".toml")
    ]
    assert len(written) > CLIENTS
    for path in written:
        content = path.read_text(encoding="utf-8")
        assert not any(f'"p{user}"' in content for user in range(USERS)), path


def test_a_stopped_run_is_resumed_with_the_same_unit_only(tmp_path, monkeypatch):
    path = users_run(tmp_path)
    whole, rounds = Run._round, count(1)

    def stops(self, ledger, number):
        if next(rounds) == 2:
            raise KeyboardInterrupt
        whole(self, ledger, number)

    monkeypatch.setattr(Run, "_round", stops)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(tmp_path / "out")
    assert not verify_run(tmp_path / "out").finished
    config = load_config(path)
    privacy = config.privacy.model_copy(update={"unit": "example"})
    other = Federation(config.model_copy(update={"privacy": privacy}))
    with pytest.raises(ConfigError, match=r"privacy\.unit"):
        other.run(tmp_path / "out", resume=True)
    result = Federation.from_config(path).run(tmp_path / "out", resume=True)
    assert result.rounds == result.charges == 3
    assert verify_run(tmp_path / "out").finished


@pytest.mark.parametrize(
    ("privacy", "training"),
    [
        pytest.param(
            {"mechanism": "local", "noise_multiplier": 4.0},
            {"local_steps": 2, "examples_per_user": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param({"mechanism": "central", "noise_multiplier": 4.0}, {}, marks=pytest.mark.slow),
        ({"mechanism": "none", "noise_multiplier": 0.0}, {}),
    ],
    ids=["local", "central", "none"],
)
def test_every_mechanism_runs_with_users(tmp_path, privacy, training):
    path = users_run(tmp_path, privacy=privacy, training={"rounds": 2} | training)
    result = Federation.from_config(path).run(tmp_path / "out")
    assert result.guarantees["release"].protected == (privacy["mechanism"] != "none")
    assert result.guarantees["release"].unit.startswith("one user")
    if privacy["mechanism"] == "none":
        assert result.after.nll < result.before.nll
    assert verify_run(tmp_path / "out").finished


def test_without_a_field_each_document_is_a_user(tmp_path):
    config = load_config(users_run(tmp_path))
    data = config.data.model_copy(update={"user_field": None})
    bench, settings = Federation(config.model_copy(update={"data": data})).prepare()
    records = 12 + sum(1 + user % 3 for user in range(1, USERS))
    held_out = round(0.1 * records)
    assert set(bench.sizes.values()) == {records - held_out}
    assert settings.guarantee("server", 1).unit.startswith("one user: one document")


def test_steps_draw_whole_users_up_to_the_bound(tmp_path, monkeypatch):
    """What the model is given in a run's steps, read where gradients are asked for."""
    asked = []
    flat_rows = PerExampleGradients.flat_rows

    def watched(self, examples):
        asked.append(examples)
        return flat_rows(self, examples)

    monkeypatch.setattr(PerExampleGradients, "flat_rows", watched)
    path = users_run(tmp_path, training={"rounds": 2, "examples_per_user": 4})
    federation = Federation.from_config(path)
    bench, _ = federation.prepare()
    federation.run(tmp_path / "out")
    sizes = {}  # of each user, by any of its windows
    for client in bench.clients.values():
        for rows in client.train.rows_of_users():
            for row in client.train.input_ids[rows]:
                sizes.setdefault(tuple(row), set()).add(len(rows))
    seen = 0
    for examples in asked:
        for rows in examples.rows_of_users():
            (size,) = set.intersection(*(sizes[tuple(row)] for row in examples.input_ids[rows]))
            assert len(rows) == min(size, 4)
            seen += 1
    assert len(asked) == 2 * CLIENTS
    assert seen > 0


def test_a_client_with_one_user_is_refused_before_a_run_folder_is_made(tmp_path):
    path = users_run(tmp_path)
    (tmp_path / "users" / "site-0.jsonl").write_text('{"text": "w1 w2", "patient": 1}\n' * 3)
    with pytest.raises(DataError, match="client site-0: all documents are of one user"):
        Federation.from_config(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("most", "size"), [(None, 2), (4, 3)])
def test_the_micro_batch_follows_from_public_figures_alone(tmp_path, most, size):
    """Not from how many records a user has: then one user's records would change the shapes."""
    sizes = []
    for heavy in (1, 40):
        training = {} if most is None else {"examples_per_user": most}
        path = users_run(tmp_path, training=training)
        write_users(tmp_path / "users", heavy=heavy)
        bench, settings = Federation.from_config(path).prepare()
        assert settings.one_step
        sizes.append(bench._gradients.micro_batch(0))
    assert sizes == [size, size]
