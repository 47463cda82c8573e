import copy
import math
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tenseal
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.encoding.fixed_point import to_ring
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, WireError
from securefed.secagg.ciphertexts import CiphertextSum, ciphertext_size, decode_words, encode_words
from securefed.secagg.homomorphic import (
    BfvEncryptor,
    BfvSecretKey,
    CkksEncryptor,
    CkksSecretKey,
    public_key_size,
)
from securefed.secagg.rlwe_parameters import PLAIN_MODULUS, BfvParameters, CkksParameters
from securefed.secagg.slots import SlotPacking, add_slots, mask_slots

T = PLAIN_MODULUS


class Keys:
    """One key pair and what is made with it."""

    def __init__(self, clients, **changes):
        self.parameters = (
            BfvParameters(clients=clients, **changes) if changes else BfvParameters.of(clients)
        )
        self.secret = BfvSecretKey.generate(self.parameters)
        self.public = self.secret.public_key()
        self.encryptor = BfvEncryptor(self.parameters, self.public)

    def encrypted(self, slots):
        return list(self.encryptor.encrypt(np.asarray(slots, dtype=np.uint64)))

    def noise(self, ciphertext):
        """An interval that holds the largest |coefficient| of a ciphertext's noise."""
        parameters, seal, context = self.parameters, self.secret._seal, self.secret._context
        words = decode_words(ciphertext, parameters.primes, parameters.degree, 2, field="noise")
        (inner,) = seal.vector(words, context).ciphertext()
        budget = context.decryptor().data.invariant_noise_budget(inner)
        # SEAL: the budget is the bits of q less those of |t noise|, less one.
        bits = parameters.modulus.bit_length() - budget - 1
        return 2 ** (bits - 1) / parameters.plain_modulus, 2**bits / parameters.plain_modulus


@pytest.fixture(scope="module", params=[100, 1000], ids=["80 bits", "88 bits"])
def keys(request):
    return Keys(request.param)


@pytest.fixture(scope="module")
def small():
    return Keys(100)


# -- sums --------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_the_decrypted_sum_is_the_integer_sum_of_any_cohort(keys, data):
    bits = data.draw(st.integers(20, 32))
    cohort, length = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 50, 12_290]))
    seed = data.draw(st.integers(0, 2**32))
    value_bound = data.draw(st.integers(1, (2 ** (bits - 1) - 1) // cohort))
    packing = SlotPacking.of(
        length=length,
        bits=bits,
        clients=cohort,
        sum_bound=cohort * value_bound,
        value_bound=value_bound,
    )
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-value_bound, value_bound + 1, (cohort, length))
    vectors[:, 0] = value_bound
    running = CiphertextSum(keys.parameters, keys.parameters.ciphertexts(packing.slots))
    for vector in vectors:
        running.add(keys.encrypted(packing.pack(to_ring(vector))))
    slots = keys.secret.decrypt(running.ciphertexts(), slots=packing.slots, summands=cohort)
    mask = np.uint32((1 << bits) - 1)
    assert np.array_equal(packing.unpack(slots), to_ring(vectors.sum(axis=0)) & mask)


def test_the_largest_number_of_summands_still_decrypts_and_no_more_are_taken(small):
    slots = np.random.default_rng(1).integers(0, T, 10, dtype=np.uint64)
    (one,) = small.encrypted(slots)
    running = CiphertextSum(small.parameters, 1)
    for _ in range(100):  # the same noise a hundred times: as far as it can go
        running.add([one])
    found = small.secret.decrypt(running.ciphertexts(), slots=10, summands=100)
    assert found.tolist() == [100 * int(value) % T for value in slots]
    with pytest.raises(LocalProtocolError, match="no more"):
        running.add([one])
    with pytest.raises(LocalProtocolError, match="summands = 101"):
        small.secret.decrypt(running.ciphertexts(), slots=10, summands=101)


@pytest.mark.parametrize("value", [0, 1, T // 2, T // 2 + 1, T - 1])
def test_every_slot_value_modulo_t_comes_back(small, value):
    found = small.secret.decrypt(small.encrypted([value] * 5000), slots=5000, summands=1)
    assert found.tolist() == [value] * 5000


def test_masks_uniform_modulo_t_cancel_under_the_encryption(small):
    rng, key = np.random.default_rng(2), os.urandom(32)
    plain = rng.integers(0, T, (2, 30), dtype=np.uint64)
    masked = [mask_slots(plain[0], [(key, False)], T), mask_slots(plain[1], [(key, True)], T)]
    running = CiphertextSum(small.parameters, 1)
    for slots in masked:
        running.add(small.encrypted(slots))
        alone = small.secret.decrypt(small.encrypted(slots), slots=30, summands=1)
        assert not np.any(alone == plain[len(masked) - 2])
    found = small.secret.decrypt(running.ciphertexts(), slots=30, summands=2)
    assert np.array_equal(found, add_slots(plain[0], plain[1], T))


def test_measured_noise_is_within_the_proven_bound_and_of_the_size_that_theory_gives(keys):
    """The bound is a worst case; typical noise of a sum of n has std sqrt(n N / 18)."""
    for summands in (1, 25):
        bound = math.ceil(keys.parameters.noise_bound * summands / keys.parameters.clients)
        running = CiphertextSum(keys.parameters, 1)
        for _ in range(summands):
            running.add(keys.encrypted(np.zeros(10)))
        least, most = keys.noise(next(running.ciphertexts()))
        typical = math.sqrt(summands * keys.parameters.degree / 18)
        assert most <= bound
        # The largest of 4096 coefficients is 3 to 6 std; the interval is a factor of two wide.
        assert most > 3 * typical
        assert least < 6 * typical


# -- the check slot ----------------------------------------------------------------------------


def test_another_number_of_summands_is_refused(small):
    running = CiphertextSum(small.parameters, 2)
    for _ in range(3):
        running.add(small.encrypted(np.ones(5000)))
    for summands in (1, 2, 4, 100):
        with pytest.raises(RemoteProtocolError, match="ciphertext 0: the check slot"):
            small.secret.decrypt(running.ciphertexts(), slots=5000, summands=summands)
    small.secret.decrypt(running.ciphertexts(), slots=5000, summands=3)


def test_ciphertexts_out_of_order_too_few_or_too_many_are_refused(small):
    first, second = small.encrypted(np.ones(5000))
    with pytest.raises(RemoteProtocolError, match="ciphertext 0"):
        small.secret.decrypt([second, first], slots=5000, summands=1)
    for wrong in ([first], [first, second, second]):
        with pytest.raises(RemoteProtocolError, match="not the 2 ciphertexts"):
            small.secret.decrypt(wrong, slots=5000, summands=1)


def test_the_sum_under_another_key_is_refused(small):
    other = BfvSecretKey.generate(small.parameters)
    with pytest.raises(RemoteProtocolError, match="check slot"):
        other.decrypt(small.encrypted(np.ones(10)), slots=10, summands=1)


def test_an_exhausted_noise_budget_is_caught():
    """The static checks switched off: a modulus proven for one summand, used for very many."""
    keys = Keys(1, data_bits=(37, 37))
    slots = np.arange(100, dtype=np.uint64)
    doubled = keys.encrypted(slots)
    object.__setattr__(keys.parameters, "clients", 2**19)
    refused = []
    for power in range(1, 17):
        running = CiphertextSum(keys.parameters, 1)
        running.add(doubled)
        running.add(doubled)
        doubled = list(running.ciphertexts())
        try:
            found = keys.secret.decrypt(doubled, slots=100, summands=2**power)
        except RemoteProtocolError:
            refused.append(power)
        else:
            assert found.tolist() == (slots * np.uint64(2**power)).tolist()
            assert not refused
    assert refused[-1] == 16
    assert 5 <= refused[0] <= 9  # std 15 against q / (2 t) = 2^13


# -- what comes from outside -------------------------------------------------------------------


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=30, deadline=None)
def test_words_come_back_and_every_ciphertext_has_one_encoding(seed, data):
    primes = data.draw(st.sampled_from([(2**40 - 87,), (2**44 - 17, 2**21 - 9), (2**36 - 5,)]))
    rng = np.random.default_rng(seed)
    words = np.stack([rng.integers(0, prime, (2, 8), dtype=np.uint64) for prime in primes], axis=1)
    words[0, 0, 0] = primes[0] - 1
    raw = encode_words(words, primes)
    assert np.array_equal(decode_words(raw, primes, 8, 2, field="x"), words)
    for wrong in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(WireError, match=f"x: {len(wrong)} bytes found"):
            decode_words(wrong, primes, 8, 2, field="x")


@pytest.mark.parametrize("clients", [100, 1000])
def test_a_coefficient_that_is_not_reduced_is_refused_wherever_it_is(clients):
    parameters = BfvParameters.of(clients)
    words = np.zeros((2, 2, 4096), dtype=np.uint64)
    for place in ((0, 0, 0), (0, 1, 1), (1, 0, 4094), (1, 1, 4095)):
        bad = words.copy()
        bad[place] = parameters.primes[place[1]]
        with pytest.raises(WireError, match="not below its prime"):
            CiphertextSum(parameters, 1).add([encode_words(bad, parameters.primes)])


def test_a_malformed_contribution_leaves_the_sum_as_it_was(small):
    running = CiphertextSum(small.parameters, 2)
    good = small.encrypted(np.full(5000, 7))
    running.add(good)
    before = list(running.ciphertexts())
    size = ciphertext_size(small.parameters)
    for bad in ([good[0], bytes([255]) * size], [good[0], good[1][:-1]], [good[0]], [*good, b""]):
        with pytest.raises(WireError):
            running.add(bad)
        assert list(running.ciphertexts()) == before
        assert running.summands == 1


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_hostile_sums_are_refused_in_one_way_and_crash_nothing(small, data):
    """Random bytes, random coefficients, all zeros, one coefficient moved far."""
    parameters = small.parameters
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    (good,) = small.encrypted(np.ones(10))
    kind = data.draw(st.sampled_from(["bytes", "short", "uniform", "zeros", "moved"]))
    blob = {
        "bytes": lambda: rng.bytes(len(good)),
        "short": lambda: rng.bytes(int(rng.integers(0, len(good)))),
        "uniform": lambda: encode_words(
            np.stack(
                [rng.integers(0, p, (2, 4096), dtype=np.uint64) for p in parameters.primes], axis=1
            ),
            parameters.primes,
        ),
        "zeros": lambda: bytes(len(good)),
        "moved": lambda: moved(good, parameters, rng),
    }[kind]()
    with pytest.raises(RemoteProtocolError, match="ciphertext 0"):
        small.secret.decrypt([blob], slots=10, summands=1)


def moved(ciphertext, parameters, rng):
    """Add q/t times a few to one coefficient: a plaintext that differs in one coefficient."""
    words = decode_words(ciphertext, parameters.primes, parameters.degree, 2, field="x")
    step = round(int(rng.integers(1, 1000)) * parameters.modulus / parameters.plain_modulus)
    place = int(rng.integers(0, parameters.degree))
    for row, prime in enumerate(parameters.primes):
        words[0, row, place] = (int(words[0, row, place]) + step) % prime
    return encode_words(words, parameters.primes)


def test_public_keys_of_another_form_are_refused_and_hostile_ones_crash_nothing(small):
    size = public_key_size(small.parameters)
    for wrong in (b"", small.public[:-1], small.public + b"\0", bytes([255]) * size):
        with pytest.raises(RemoteProtocolError, match="public key"):
            BfvEncryptor(small.parameters, wrong)
    other = BfvParameters.of(1000)
    with pytest.raises(RemoteProtocolError, match="public key"):
        BfvEncryptor(other, small.public)


def test_a_key_of_unknown_origin_protects_nothing(small):
    """All zeros is a well-formed key, and what it encrypts opens under any other."""
    planted = BfvEncryptor(small.parameters, bytes(public_key_size(small.parameters)))
    made = list(planted.encrypt(np.arange(5, dtype=np.uint64)))
    anybody = BfvSecretKey.generate(small.parameters)
    assert anybody.decrypt(made, slots=5, summands=1).tolist() == [0, 1, 2, 3, 4]


def test_slots_that_are_not_reduced_are_not_encrypted(small):
    for wrong in (np.full(3, T, dtype=np.uint64), np.zeros(3, dtype=np.int64)):
        with pytest.raises(ConfigError, match="below t"):
            next(small.encryptor.encrypt(wrong))


# -- secrets and memory ------------------------------------------------------------------------


def test_a_public_key_holds_no_secret_and_does_not_decrypt(small):
    whole = small.secret.secret_bytes()
    size = public_key_size(small.parameters)
    assert len(small.public) == size
    assert whole[:size] == small.public
    secret = whole[size:]
    assert not any(secret[i : i + 40] in small.public for i in range(0, len(secret), 4001))
    assert small.encryptor._context.is_public()
    assert not small.encryptor._context.has_secret_key()
    assert small.secret._context.has_secret_key()


def test_a_key_sent_to_another_decrypts_the_same_and_an_altered_one_does_not(small):
    raw = small.secret.secret_bytes()
    blob = small.encrypted([1, 2, 3])
    again = BfvSecretKey.from_bytes(small.parameters, raw)
    assert again.decrypt(blob, slots=3, summands=1).tolist() == [1, 2, 3]
    assert again.public_key() == small.public
    altered = bytearray(raw)
    altered[len(small.public) + 100] ^= 1  # modulo a data prime; the special one is not used
    with pytest.raises(RemoteProtocolError):
        BfvSecretKey.from_bytes(small.parameters, bytes(altered)).decrypt(blob, slots=3, summands=1)
    for wrong in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(RemoteProtocolError, match="key"):
            BfvSecretKey.from_bytes(small.parameters, wrong)


def test_a_secret_key_is_neither_copied_nor_pickled_nor_shown(small):
    assert repr(small.secret) == str(small.secret) == "<BfvSecretKey>"
    for leak in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            leak(small.secret)


def test_encryptions_of_the_same_slots_differ(small):
    assert small.encrypted([1]) != small.encrypted([1])


def test_memory_is_one_ciphertext_at_the_client_and_the_sum_at_the_server(small):
    slots = np.zeros(4095 * 30, dtype=np.uint64)
    one = 16 * 2 * 4096  # words of one ciphertext in bytes
    running = CiphertextSum(small.parameters, 30)
    pieces = small.encryptor.encrypt(slots)
    next(pieces)
    tracemalloc.start()
    sizes = [len(piece) for piece in pieces]
    client = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) + sizes[0] == 30 * ciphertext_size(small.parameters)
    assert client < 8 * one < sum(sizes)
    contributions = [list(small.encryptor.encrypt(slots)) for _ in range(3)]
    tracemalloc.start()
    for contribution in contributions:
        running.add(contribution)
    server = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert server < 6 * one


def test_nothing_is_encrypted_ahead_of_what_is_taken(small):
    made = small.encryptor.encrypt(np.zeros(4095 * 1000, dtype=np.uint64))
    assert len(next(made)) == ciphertext_size(small.parameters)
    made.close()


def test_without_tenseal_keys_say_what_is_missing_and_sums_still_work():
    program = """
import sys
sys.modules["tenseal"] = None
from securefed.errors import ConfigError
from securefed.secagg.ciphertexts import CiphertextSum, ciphertext_size
from securefed.secagg.homomorphic import BfvSecretKey
from securefed.secagg.rlwe_parameters import BfvParameters
parameters = BfvParameters.of(3)
CiphertextSum(parameters, 1).add([bytes(ciphertext_size(parameters))])
try:
    BfvSecretKey.generate(parameters)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "needs TenSEAL, which is not installed" in done.stdout


# -- CKKS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ckks():
    parameters = CkksParameters(clients=100, sum_bound=2**31 - 1)
    secret = CkksSecretKey.generate(parameters)
    return parameters, secret, CkksEncryptor(parameters, secret.public_key())


def test_ckks_sums_come_back_as_exact_integers(ckks):
    parameters, secret, encryptor = ckks
    rng = np.random.default_rng(4)
    vectors = rng.integers(-(2**31) // 8, 2**31 // 8, (7, 2050))
    vectors[:, 0], vectors[:, 1] = 2**28, -(2**28)
    running = CiphertextSum(parameters, parameters.ciphertexts(2050))
    for vector in vectors:
        running.add(list(encryptor.encrypt(vector)))
    found = secret.decrypt(running.ciphertexts(), length=2050, summands=7, noise_std=64.0)
    assert found.dtype == np.int64
    assert np.array_equal(found, vectors.sum(axis=0))
    with pytest.raises(RemoteProtocolError, match="check slot"):
        secret.decrypt(running.ciphertexts(), length=2050, summands=6, noise_std=64.0)
    again = CkksSecretKey.from_bytes(parameters, secret.secret_bytes())
    found = again.decrypt(running.ciphertexts(), length=2050, summands=7, noise_std=64.0)
    assert np.array_equal(found, vectors.sum(axis=0))


def test_ckks_error_before_rounding_is_far_below_a_quarter(ckks):
    """A hundred times one encryption at the largest values: errors add up as far as they can."""
    parameters, secret, encryptor = ckks
    largest = (2**31 - 1) // 100
    (one,) = encryptor.encrypt(np.full(2047, largest))
    running = CiphertextSum(parameters, 1)
    for _ in range(100):
        running.add([one])
    (values,) = secret._opened(running.ciphertexts(), 100, 1)
    error = np.abs(np.array(values)[:-1] - 100 * largest).max()
    assert 0.0 < error < 2**-5


def test_ckks_sums_without_noise_are_not_released(ckks):
    _, secret, encryptor = ckks
    sums = list(encryptor.encrypt(np.ones(3, dtype=np.int64)))
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="noise_std"):
            secret.decrypt(sums, length=3, summands=1, noise_std=std)


@pytest.mark.parametrize("kind", ["uniform", "zeros"])
def test_hostile_ckks_sums_are_refused(ckks, kind):
    parameters, secret, _ = ckks
    rng = np.random.default_rng(6)
    words = np.stack(
        [rng.integers(0, p, (2, 4096), dtype=np.uint64) for p in parameters.primes], axis=1
    )
    blob = encode_words(words * np.uint64(kind == "uniform"), parameters.primes)
    with pytest.raises(RemoteProtocolError, match="check slot"):
        secret.decrypt([blob], length=3, summands=1, noise_std=1.0)


def test_ckks_sums_that_are_not_near_integers_are_refused(ckks):
    """A contribution that a hostile client made of fractions; its check slot is right."""
    parameters, secret, encryptor = ckks
    for fraction, refused in ((0.4, True), (0.1, False)):
        vector = tenseal.ckks_vector(
            encryptor._context, [fraction] * 2047 + [1.0], 2.0**parameters.scale_bits
        )
        blob = encryptor._encoded(vector, parameters)
        if refused:
            with pytest.raises(RemoteProtocolError, match="more noise"):
                secret.decrypt([blob], length=3, summands=1, noise_std=1.0)
        else:
            found = secret.decrypt([blob], length=3, summands=1, noise_std=1.0)
            assert found.tolist() == [0, 0, 0]


def test_ckks_values_out_of_range_are_not_encrypted(ckks):
    _, _, encryptor = ckks
    for wrong in (np.array([2**31]), np.array([1.5]), np.array([[1]])):
        with pytest.raises(ConfigError, match="values"):
            next(encryptor.encrypt(wrong))
