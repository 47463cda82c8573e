"""Clients of unlike ranks fine-tune one adapter under secure aggregation, beside one rank for all.

Each client has a public rank, from what its device can do.  A is frozen and the same for all; a
client trains the columns of B up to its own rank, clips each example over all of them, and takes
part in one secure sum for each slice of columns that it holds.  The arms have the same noise
multiplier, clip and rounds.  Clients charge their own accounts, in FOLDER, once a round.  One
process plays all parts: it shows what a federation would reach and separates nobody from anybody.
"""

import argparse
import hashlib
import math
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

import securefed as sf
from securefed.config import DataSection, LoraSection, ModelSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.in_process import carry
from securefed.errors import SecureFedError
from securefed.evidence.budget import ClientBudget
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.sliced_rounds import SlicedEncode
from securefed.federation.slices import SlicedCodec
from securefed.lora.adapter import adapter_state, build_adapter, load_adapter_state
from securefed.lora.columns import at_rank
from securefed.lora.ranks import RankLayout, limited_to_rank, section_at, slice_hashes
from securefed.lora.sharing import travelling_parameters
from securefed.lora.tiers import RankTiers
from securefed.privacy.accounting import epsilon_text
from securefed.privacy.clipping import L2Clip
from securefed.privacy.samplers import poisson_sample
from securefed.training.assets import cache_dir
from securefed.training.corpora import load_corpus
from securefed.training.data import ClientData, tokenize_clients
from securefed.training.dp_sgd import PerExampleGradients, filled_micro_batch
from securefed.training.evaluate import evaluate
from securefed.training.models import LoadedModel, load_model

CPU, TASK, CLIP = torch.device("cpu"), "causal-lm", 0.5
RANKS = (2, 4, 8)
WEAK, MIDDLING, STRONG = RANKS
DEVICES = (WEAK, STRONG, WEAK, MIDDLING)  # of the first four clients, and so on
SECTION = LoraSection(rank=STRONG, alpha=2.0 * STRONG, target_modules=["v_proj"])


def load(options: argparse.Namespace) -> LoadedModel:
    section = ModelSection(source=options.model, task=TASK)
    return load_model(section, cache=cache_dir(), offline=False, device=CPU)


def tokenized(options: argparse.Namespace) -> dict[str, ClientData]:
    section = DataSection(source=options.data, window_tokens=options.window)
    found = tokenize_clients(
        load_corpus(options.data, cache=cache_dir(), section=section),
        section,
        tokenizer=load(options).tokenizer,
        task=TASK,
        labels=None,
        held_out_windows=options.held_out,
        held_out_tokens=options.window,
    )
    return {name: found[name] for name in sorted(found)[: options.clients]}


class Arm:
    """One federation: the server's adapter, and clients of the ranks given."""

    def __init__(
        self, options: argparse.Namespace, clients: dict[str, ClientData], ranks: Mapping[str, int]
    ) -> None:
        self.options, self.clients = options, clients
        total = sum(len(client.train) for client in clients.values())
        self.policy = sf.PrivacyPolicy(
            clip_norm=CLIP,
            noise_multiplier=options.noise,
            unit="example",
            sampling_probability=options.batch / total,
            max_examples=max(len(client.train) for client in clients.values()),
            rounds=options.rounds,
            corrupt_fraction=0.1,
        )
        self.aggregation = sf.PairwiseAggregation()
        # Tiers that too few clients reach are merged into the one below, by public sizes alone.
        tiers = RankTiers(tuple(sorted(set(ranks.values()))))
        self.tiers = tiers.merged(
            sf.standing_slices(
                tiers.members(ranks), policy=self.policy, aggregation=self.aggregation
            )
        )
        self.tier_of = {name: self.tiers.tier(rank) for name, rank in ranks.items()}
        loaded = load(options)
        self.base = bytes.fromhex(loaded.fingerprint)
        self.model = build_adapter(loaded.model, SECTION, task=TASK)
        if self.tiers.largest < STRONG:  # the same directions as in the other arms
            made = at_rank(adapter_state(self.model), self.tiers.largest)
            section = section_at(SECTION, self.tiers.largest)
            self.model = build_adapter(load(options).model, section, task=TASK)
            load_adapter_state(self.model, made)
        self.parameters = travelling_parameters(self.model, "ffa")
        self.slices = RankLayout(
            self.tiers, {n: tuple(p.shape) for n, p in self.parameters.items()}
        )
        self.order = self.slices.order()
        expected = options.batch / len(clients)
        self.gradients = PerExampleGradients(
            self.model,
            self.slices.whole,
            task=TASK,
            micro_batch=filled_micro_batch(16, expected, TASK, CPU),
            device=CPU,
        )
        few = max(clients.values(), key=lambda client: len(client.train)).train
        if note := self.gradients.check(few.take(range(min(3, len(few))))):
            print("note:", note)
        self.identities = {name: sf.IdentityKey.generate() for name in clients}
        self.sent = dict.fromkeys(clients, 0)

    def rank(self, name: str) -> int:
        return self.tiers.ranks[self.tier_of[name] - 1]

    def session(self, number: int) -> sf.SlicedSession:
        """What every party agrees on; a client of a lower tier checks its own slices' hashes."""
        adapter = " ".join(slice_hashes(adapter_state(self.model), self.tiers))
        return sf.SlicedSession(
            session=secrets.token_bytes(16),
            round=number,
            roster={name: key.public for name, key in self.identities.items()},
            tiers=self.tier_of,
            widths=self.slices.widths,
            policy=self.policy,
            aggregation=self.aggregation,
            model=hashlib.sha256(self.base + adapter.encode()).digest(),
        )

    def encode(self, name: str) -> SlicedEncode:
        """A secret sample's gradients, each clipped over all slices that the client holds."""

        def run(codec: SlicedCodec, noise: NoiseGenerator) -> tuple[np.ndarray, ...]:
            examples = self.clients[name].train
            kept = poisson_sample(len(examples), self.policy.sampling_probability, noise)
            held, total = self.order[: codec.dimension], np.zeros(codec.dimension)
            with limited_to_rank(self.model, self.rank(name)):
                for rows in self.gradients.flat_rows(examples.take(kept)):
                    total += L2Clip(CLIP).clip_rows(rows[:, held])
            return codec.encode_clipped_sum(total, noise)

        return run

    def round(self, number: int, accounts: Mapping[str, ClientBudget]) -> np.ndarray:
        """One sliced round; the mean gradient, float64[d], zero in a slice that stays closed."""
        told = self.session(number)
        server = sf.SlicedServerRound(told)
        halves = {
            name: sf.SlicedClientRound(
                told,
                name,
                self.identities[name],
                self.encode(name),
                charge=lambda name=name: accounts[name].charge(told.event()),
            )
            for name in self.clients
        }
        carried = carry(server, halves, keep_transcript=False)
        for name, count in carried.bytes_up.items():
            self.sent[name] += count
        gradient, start = np.zeros(self.order.size), 0
        for index, width in enumerate(self.slices.widths, start=1):
            if index in server.sums:
                holders = server.survivors[index]
                rows = sum(len(self.clients[name].train) for name in holders)
                mean = server.sums[index] / (self.policy.sampling_probability * rows)
                gradient[self.order[start : start + width]] = mean
            start += width
        return gradient

    def run(self, folder: Path, label: str) -> None:
        flat = self.slices.whole.flatten({n: p.detach() for n, p in self.parameters.items()})
        optimizer = ServerOptimizer(flat, kind="adam", learning_rate=self.options.learning_rate)
        before = self.perplexities()
        with ExitStack() as held:
            accounts = {}
            for name in self.clients:
                path = folder / f"{label}-{name}.jsonl"
                accounts[name] = sf.open_account(path, self.session(1), name)
                held.callback(accounts[name].close)
            for number in range(1, self.options.rounds + 1):
                flat = optimizer.step(self.round(number, accounts))
                for name, tensor in self.slices.whole.unflatten(flat).items():
                    self.parameters[name].data.copy_(tensor)
            charges = max(account.charges for account in accounts.values())
        after = self.perplexities()
        statement = self.session(1).guarantee(rounds=charges)
        kib = {
            rank: np.mean([self.sent[n] for n in self.clients if self.rank(n) == rank])
            / (1024 * self.options.rounds)
            for rank in self.tiers.ranks
        }
        sizes = ", ".join(f"rank {rank}: {size:.0f}" for rank, size in kib.items())
        print(
            f"{label}: perplexity {np.mean(before):.2f} -> {np.mean(after):.2f}, worst client "
            f"{max(before):.2f} -> {max(after):.2f}; epsilon {epsilon_text(statement.epsilon)} at "
            f"delta {statement.delta:g} after {charges} charges; KiB up a round: {sizes}"
        )
        if label == "mixed":
            print(statement)

    def perplexities(self) -> list[float]:
        """Each client's own held-out text, with the adapter at the client's own rank."""
        found = []
        for name, client in self.clients.items():
            with limited_to_rank(self.model, self.rank(name)):
                score = evaluate(self.model, client.held_out, task=TASK, micro_batch=16, device=CPU)
            found.append(math.exp(score.nll_sum / score.tokens))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where clients keep their accounts; must be new")
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--data", default="builtin:state-of-the-union")
    parser.add_argument("--clients", type=int, default=12, help="at most; the first by name")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.6)
    parser.add_argument("--batch", type=float, default=128.0, help="expected, over all clients")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    clients = tokenized(options)
    devices = {name: DEVICES[i % len(DEVICES)] for i, name in enumerate(clients)}
    print(f"{len(clients)} clients; ranks " + ", ".join(f"{n} {r}" for n, r in devices.items()))
    for label, ranks in (
        ("weakest-for-all", dict.fromkeys(devices, WEAK)),
        ("mixed", devices),
        ("strongest-for-all", dict.fromkeys(devices, STRONG)),
    ):
        Arm(options, clients, ranks).run(options.folder, label)


if __name__ == "__main__":
    try:
        main()
    except (SecureFedError, OSError) as error:
        raise SystemExit(f"mixed_ranks: {error}") from None
