"""One client of Flower's SecAgg+ with real peers, and what its server does for each mask.

Needs ``flwr``.  Everything that is timed is Flower's own function; this module only brings it into
the state that a round would, through the other stages' own functions.
"""

import importlib
from collections.abc import Callable

import numpy as np


class Flower:
    """A SecAgg+ client with real peers, and the unit costs of the server in such a cohort."""

    CLIPPING, TARGET, MODULUS = 8.0, 1 << 22, 1 << 32

    def __init__(self, clients: int, threshold: int, values: int) -> None:
        common = "flwr.common.secure_aggregation."
        self.stages = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
        self.keys = importlib.import_module("flwr.supercore.primitives.asymmetric")
        self.sealing = importlib.import_module(common + "crypto.symmetric_encryption")
        self.shamir = importlib.import_module(common + "crypto.shamir")
        self.arithmetic = importlib.import_module(common + "ndarrays_arithmetic")
        self.quantization = importlib.import_module(common + "quantization")
        self.utils = importlib.import_module(common + "secaggplus_utils")
        self.key = importlib.import_module(common + "secaggplus_constants").Key
        self.record = importlib.import_module("flwr.app").ConfigRecord
        self.values, self.clients = values, clients
        self.update = np.random.default_rng(1).normal(0.0, 0.01, values).astype(np.float32)
        pack = importlib.import_module("flwr.common").ndarrays_to_parameters
        self.parameters = pack([self.update])

        self.state = self.stages.SecAggPlusState()
        self.state.nid = clients // 2
        settings = {
            self.key.SAMPLE_NUMBER: clients,
            self.key.SHARE_NUMBER: clients,
            self.key.THRESHOLD: threshold,
            self.key.CLIPPING_RANGE: self.CLIPPING,
            self.key.TARGET_RANGE: self.TARGET,
            self.key.MOD_RANGE: self.MODULUS,
            self.key.MAX_WEIGHT: 1000.0,
        }
        self.stages._setup(self.state, self.record(settings))
        public = {
            nid: [self.keys.public_key_to_bytes(self.keys.generate_key_pairs()[1]) for _ in "12"]
            for nid in range(clients)
        }
        public[self.state.nid] = [self.state.pk1, self.state.pk2]
        self.directory = self.record({str(nid): pair for nid, pair in public.items()})
        self.other = public[0][0]
        self._exchange()

    def _exchange(self) -> None:
        """Share once, and turn what was sealed to the peers into what they would have sent."""
        sent = self.share_keys()
        me = self.state.nid
        self.seed_shares = [self.state.rd_seed_share_dict[me]]
        self.key_shares = [self.state.sk1_share_dict[me]]
        self.seed, back = self.state.rd_seed, []
        for nid, sealed in zip(
            sent[self.key.DESTINATION_LIST], sent[self.key.CIPHERTEXT_LIST], strict=True
        ):
            shared = self.state.ss2_dict[nid]
            _, _, seed_share, key_share = self.utils.share_keys_plaintext_separate(
                self.sealing.decrypt(shared, sealed)
            )
            self.seed_shares.append(seed_share)
            self.key_shares.append(key_share)
            plain = self.utils.share_keys_plaintext_concat(nid, me, seed_share, key_share)
            back.append(self.sealing.encrypt(shared, plain))
        self.delivery = self.record(
            {
                self.key.CIPHERTEXT_LIST: back,
                self.key.SOURCE_LIST: list(sent[self.key.DESTINATION_LIST]),
            }
        )

    def share_keys(self) -> dict:
        """Its share stage."""
        return self.stages._share_keys(self.state, self.directory)

    def mask(self) -> dict:
        """Its masked-input stage, quantisation included."""
        return self.stages._collect_masked_vectors(self.state, self.delivery, 100, self.parameters)

    def quantise(self) -> None:
        """What of :meth:`mask` is not masking."""
        scaled = self.arithmetic.parameters_multiply([self.update], 0.1)
        self.quantization.quantize(scaled, self.CLIPPING, self.TARGET)

    def unmask_units(self, dropped: int) -> dict[str, tuple[int, int, Callable[[], object]]]:
        """What its ``unmask_stage`` does: how often, how often in one call here, and the call."""
        alive, pairs = self.clients - dropped, dropped * (self.clients - 1)
        seed_shares, key_shares = self.seed_shares[:alive], self.key_shares[:alive]
        combine = self.shamir.combine_shares
        if combine(seed_shares) != self.seed or combine(key_shares) != self.state.sk1:
            raise SystemExit("Flower's shares do not combine")
        shapes = [(1,), (self.values,)]
        total = [np.ones(1, dtype=np.int64), np.ones(self.values, dtype=np.int64)]
        subtract, expand = self.arithmetic.parameters_subtraction, self.utils.pseudo_rand_gen
        shared = self.agree()

        def masks(vector: list, count: int) -> None:
            for _ in range(count):
                vector = subtract(vector, expand(shared, self.MODULUS, shapes))

        def decode() -> None:
            reduced = self.arithmetic.parameters_mod(total, self.MODULUS)
            _, rest = self.arithmetic.factor_extract(reduced)
            for vector in self.quantization.dequantize(rest, self.CLIPPING, self.TARGET):
                vector += -(alive - 1) * self.CLIPPING
                vector *= 0.1

        return {
            "seeds combined": (alive, 1, lambda: combine(seed_shares)),
            "keys combined": (dropped, 1, lambda: combine(key_shares)),
            "key agreements": (pairs, 20, lambda: [self.agree() for _ in range(20)]),
            "masks removed": (alive + pairs, 10, lambda: masks(total, 10)),
            "decoding": (1, 1, decode),
        }

    def agree(self) -> bytes:
        """One pair's key, from both ends' encoded keys, as the workflow does it."""
        return self.sealing.generate_shared_key(
            self.keys.bytes_to_private_key(self.state.sk1),
            self.keys.bytes_to_public_key(self.other),
        )
