import json
import math
from dataclasses import replace

import pytest
from deployed import CLOCK, policy_values
from recorded_site import session_of

from securefed import PrivacyPolicy
from securefed.agent.policy import AgentPolicy
from securefed.agent.spending import Spending
from securefed.crypto.identity import IdentityKey
from securefed.errors import BudgetExceeded, ConfigError, LedgerTampered, LocalProtocolError

KEYS = {f"site-{i}": IdentityKey.generate() for i in range(4)}
ROSTER = {name: key.public for name, key in KEYS.items()}
NOISED = PrivacyPolicy(
    clip_norm=1.0,
    noise_multiplier=2.0,
    unit="example",
    sampling_probability=0.1,
    max_examples=10,
    delta=1e-5,
)


def round_of(number, policy=NOISED):
    return session_of(bytes([number]) * 16, ROSTER, ROSTER, 40, number=number, policy=policy)


def opened(folder, **budget):
    values = policy_values("site-0", "00" * 32, budget=budget)["budget"]
    section = AgentPolicy.model_fields["budget"].annotation.model_validate(values)
    return Spending(folder, "site-0", section, lambda: CLOCK)


def test_rounds_of_one_kind_are_composed_by_their_accountant(tmp_path):
    spending = opened(tmp_path)
    for number in (1, 2, 3):
        spending.charge(round_of(number))
    epsilon, delta = spending.spent()
    assert epsilon == pytest.approx(round_of(1).guarantee("server", rounds=3).epsilon)
    assert delta == 1e-5


def test_kinds_add_up(tmp_path):
    spending, other = opened(tmp_path), replace(NOISED, noise_multiplier=4.0)
    spending.charge(round_of(1))
    spending.charge(round_of(2, other))
    one = round_of(1).guarantee("server", rounds=1).epsilon
    two = round_of(1, other).guarantee("server", rounds=1).epsilon
    assert spending.spent() == (pytest.approx(one + two), pytest.approx(2e-5))


def test_what_is_spent_outlives_the_process(tmp_path):
    first = opened(tmp_path)
    first.charge(round_of(1))
    before = first.spent()
    first.close()
    again = opened(tmp_path)
    assert again.spent() == before
    with pytest.raises(LocalProtocolError, match="charged before"):
        again.charge(round_of(1))


def test_a_kind_that_would_pass_the_sum_is_refused_and_nothing_is_written(tmp_path):
    one = round_of(1).guarantee("server", rounds=1).epsilon
    spending = opened(tmp_path, epsilon=1.5 * one)
    spending.charge(round_of(1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = round_of(2, replace(NOISED, noise_multiplier=2.1))
    for act in (spending.check, spending.charge):
        with pytest.raises(BudgetExceeded, match=r"budget\.epsilon"):
            act(other)
    total = tmp_path / "total.jsonl"
    assert total.read_bytes() == before[total]
    assert spending.spent()[0] == pytest.approx(one)


def test_deltas_add_up_too(tmp_path):
    spending = opened(tmp_path, delta=1.5e-5)
    spending.charge(round_of(1))
    with pytest.raises(BudgetExceeded, match="delta"):
        spending.charge(round_of(2, replace(NOISED, noise_multiplier=4.0)))


def test_a_kill_between_the_two_files_counts_as_spent(tmp_path, monkeypatch):
    spending = opened(tmp_path)
    from securefed.evidence.budget import ClientBudget

    def killed(self, event):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClientBudget, "charge", killed)
    with pytest.raises(KeyboardInterrupt):
        spending.charge(round_of(1))
    spending.close()
    monkeypatch.undo()
    assert opened(tmp_path).spent()[0] == pytest.approx(
        round_of(1).guarantee("server", rounds=1).epsilon
    )


def test_rounds_without_noise_are_counted_and_have_no_epsilon(tmp_path):
    from recorded_site import POLICY

    spending = opened(tmp_path)
    spending.charge(round_of(1, POLICY))
    assert spending.spent() == (math.inf, 0.0)
    charges = [p for p in tmp_path.glob("*.jsonl") if p.name != "total.jsonl"]
    assert any('"charge"' in path.read_text() for path in charges)
    spending.charge(round_of(2))
    assert spending.spent()[0] == math.inf  # noise in other rounds makes up for nothing
    spending.close()
    assert opened(tmp_path).spent()[0] == math.inf


def test_accounts_of_another_unit_or_adversary_are_refused(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match="against"):
        opened(tmp_path, against="release")


def test_a_rewritten_sum_is_found(tmp_path):
    spending = opened(tmp_path)
    spending.charge(round_of(1))
    spending.close()
    path = tmp_path / "total.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    record["body"]["epsilon"] = 0.01
    path.write_text("\n".join([lines[0], json.dumps(record)]) + "\n")
    with pytest.raises(LedgerTampered):
        opened(tmp_path)


def accounts_of(folder):
    return [p for p in folder.glob("*.jsonl") if p.name != "total.jsonl"]


def test_a_sum_that_was_removed_does_not_begin_anew(tmp_path):
    spending = opened(tmp_path)
    spending.charge(round_of(1))
    spending.close()
    for path in tmp_path.glob("total*"):
        path.unlink()
    with pytest.raises(LedgerTampered, match=r"total\.jsonl: lacks a charge"):
        opened(tmp_path)


def test_an_older_copy_of_the_sum_is_found(tmp_path):
    spending = opened(tmp_path)
    spending.charge(round_of(1))
    older = {path: path.read_bytes() for path in tmp_path.glob("total*")}
    spending.charge(round_of(2))
    spending.close()
    for path, content in older.items():
        path.write_bytes(content)
    with pytest.raises(LedgerTampered, match="lacks a charge"):
        opened(tmp_path)


@pytest.mark.parametrize("removed", [True, False])
def test_what_an_account_lost_is_charged_to_it_again(tmp_path, removed):
    spending = opened(tmp_path)
    spending.charge(round_of(1))
    (path,) = accounts_of(tmp_path)
    files = [path, path.with_name(f"{path.stem}.head.json")]
    older = {each: each.read_bytes() for each in files}
    for number in (2, 3):
        spending.charge(round_of(number))
    spending.close()
    for each, content in older.items():
        each.unlink() if removed else each.write_bytes(content)
    again = opened(tmp_path)
    again.charge(round_of(4))
    assert again.spent()[0] == pytest.approx(round_of(1).guarantee("server", rounds=4).epsilon)


def test_a_folder_that_others_may_enter_is_refused(tmp_path):
    folder = tmp_path / "accounts"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match=r"mode 0755 .*chmod 700"):
        opened(folder)


def test_accounts_of_many_kinds_are_not_all_open(tmp_path):
    spending = opened(tmp_path)
    for number in range(20):
        spending.check(round_of(1, replace(NOISED, noise_multiplier=2.0 + number)))
    assert len(spending._accounts) == 16
    spending.charge(round_of(1, replace(NOISED, noise_multiplier=2.0)))
