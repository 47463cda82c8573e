"""A view holds what its adversary sees, taken from a real round, and nothing else."""

import dataclasses

import attacked
import numpy as np
import pytest

from securefed.attacks import views
from securefed.attacks.base import AdversaryView
from securefed.crypto.prg import add_keystreams
from securefed.encoding.wire import pack_ring
from securefed.engines.in_process import secure_round
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.lora.adapter import adapter_state
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import HomomorphicAggregation, PairwiseAggregation


@pytest.fixture(scope="module")
def plain():
    made = attacked.bench("bert", attacked.setup("bert"))
    session = made.session()
    sent = attacked.updates(made, attacked.texts("bert", 0), "bert")
    server, transcript = made.run(session, sent)
    return made, session, sent, server, transcript


@pytest.fixture(scope="module")
def masked():
    made = attacked.bench("bert", attacked.setup("bert"), aggregation=PairwiseAggregation())
    session = made.session()
    sent = attacked.updates(made, attacked.texts("bert", 0), "bert")
    colluders = made.colluding(session, sent)
    server, transcript = made.run(session, sent, colluders)
    return made, session, sent, server, transcript, [c.learned for c in colluders.values()]


def test_no_view_prints_what_it_holds(masked):
    _, session, _, server, transcript, learned = masked
    share = views.masked_share(session, transcript, attacked.VICTIM)
    for held in (*learned, share, share.with_colluders(learned, session), views.opened_sum(server)):
        assert "array(" not in repr(held)
        assert "b'" not in repr(held)


@pytest.mark.parametrize(
    ("view", "fields"),
    [
        (views.PlainUpdate, {"adversary", "client", "message", "values"}),
        (views.MaskedShare, {"adversary", "client", "message", "values", "colluders"}),
        (views.EncryptedShare, {"adversary", "client", "message", "ciphertexts"}),
        (views.OpenedSum, {"adversary", "clients", "total", "colluders"}),
        (views.SumsOverRounds, {"adversary", "sums"}),
        (views.ReleasedAdapter, {"adversary", "state", "clients"}),
    ],
)
def test_a_view_is_frozen_and_has_these_fields_only(view, fields):
    assert issubclass(view, AdversaryView)
    assert {field.name for field in dataclasses.fields(view)} == fields
    assert view.__dataclass_params__.frozen


def test_a_plain_update_is_the_clipped_update_up_to_the_grid(plain):
    made, session, sent, _, transcript = plain
    view = views.plain_update(session, transcript, attacked.VICTIM)
    assert view.message == transcript["masked_input"][attacked.VICTIM]
    own = sent[attacked.VICTIM].astype(np.float64)
    clipped = own * min(1.0, 1.0 / np.linalg.norm(own))
    step = session.plan.resolution * np.sqrt(session.plan.padded)
    assert np.linalg.norm(view.reading(made.public(session)) - clipped) < step


def test_a_masked_share_is_the_bytes_of_the_transcript_and_unlike_the_update(masked):
    made, session, sent, _, transcript, _ = masked
    view = views.masked_share(session, transcript, attacked.VICTIM)
    assert view.message == transcript["masked_input"][attacked.VICTIM]
    assert pack_ring(view.values, session.plan.bits) in view.message
    read = view.reading(made.public(session))
    cosine = read @ sent[attacked.VICTIM] / np.linalg.norm(read)
    assert abs(cosine) < 5.0 * np.linalg.norm(sent[attacked.VICTIM]) / np.sqrt(len(read))


def test_colluders_take_their_masks_off_a_share_and_the_self_mask_stays(masked):
    made, session, sent, _, transcript, learned = masked
    public = made.public(session)
    alone = views.masked_share(session, transcript, attacked.VICTIM)
    together = alone.with_colluders(learned, session)
    assert together.colluders == made.names[1:]
    assert together.adversary == "server with site-01, site-02"
    assert not np.array_equal(together.values, alone.values)
    own = sent[attacked.VICTIM]
    for view in (alone, together):
        read = view.reading(public)
        assert abs(read @ own / np.linalg.norm(read) / np.linalg.norm(own)) < 5 / np.sqrt(len(own))
    with pytest.raises(ConfigError, match="named twice"):
        together.with_colluders(learned, session)


def test_the_masks_of_all_clients_cancel_but_for_their_self_masks(masked):
    # Each share without the edges that the two colluders know: what is left of the three is the sum
    # and the self masks, as in the sum of the shares as they were sent.
    _, session, _, _, transcript, learned = masked
    one, other = learned
    shares = {
        name: views.masked_share(session, transcript, name)
        for name in (attacked.VICTIM, one.client, other.client)
    }
    low = np.uint32((1 << session.plan.bits) - 1)
    before = sum(share.values for share in shares.values()) & low
    edges = {
        attacked.VICTIM: [one, other],
        one.client: [other],
        other.client: [one],
    }
    after = sum(shares[name].with_colluders(known, session).values for name, known in edges.items())
    for each in learned:  # the victim's edges, at their other ends
        values = np.zeros_like(before)
        add_keystreams(values, [each.masks[attacked.VICTIM]])
        after = after - values
    assert np.array_equal(before, after & low)


def test_an_opened_sum_without_all_others_is_the_victims_update(masked):
    made, session, sent, server, _, learned = masked
    view = views.opened_sum(server)
    assert view.contributions == 3
    assert np.array_equal(view.reading(made.public(session)), server.sum)
    left = view.with_colluders(learned, session)
    assert left.clients == (attacked.VICTIM,)
    own = sent[attacked.VICTIM].astype(np.float64)
    own *= min(1.0, 1.0 / np.linalg.norm(own))
    assert np.linalg.norm(left.total - own) < 1e-3
    with pytest.raises(ConfigError, match="clients of the sum"):
        left.with_colluders(learned, session)


@pytest.mark.parametrize("masked_too", [False, True])
def test_ciphertexts_are_those_of_the_transcript_and_read_as_noise(masked_too):
    made = attacked.bench("bert", attacked.setup("bert", rank=2))
    own = made.update(attacked.texts("bert", 0))
    result = secure_round(
        {name: own for name in made.names},
        privacy=PrivacyPolicy(clip_norm=1.0, noise_multiplier=0.5),
        aggregation=HomomorphicAggregation(masked=masked_too),
    )
    view = views.encrypted_share(result.session, result.transcript, attacked.VICTIM)
    assert view.message == result.transcript["masked_input"][attacked.VICTIM]
    assert view.message.endswith(view.ciphertexts)
    assert len(view.ciphertexts) == result.session.context.encryption.input_bytes
    read = view.reading(made.public(result.session))
    cosine = read @ own / np.linalg.norm(read) / np.linalg.norm(own)
    assert abs(cosine) < 5.0 / np.sqrt(len(own))
    assert views.opened_sum(result).clients == made.names


def test_views_refuse_rounds_of_another_kind(plain, masked):
    _, session, _, _, transcript = plain
    with pytest.raises(ConfigError, match="not masked ring vectors"):
        views.masked_share(session, transcript, attacked.VICTIM)
    with pytest.raises(ConfigError, match="no contribution of 'nobody'"):
        views.plain_update(session, transcript, "nobody")
    _, other, _, _, sent, _ = masked
    with pytest.raises(ConfigError, match="not in the clear"):
        views.plain_update(other, sent, attacked.VICTIM)
    mixed = {"masked_input": {attacked.VICTIM: transcript["masked_input"]["site-01"]}}
    with pytest.raises(RemoteProtocolError, match="another client"):
        views.plain_update(session, mixed, attacked.VICTIM)


def test_sums_over_rounds_average_what_changes(plain):
    made, session, _, server, _ = plain
    once = views.opened_sum(server)
    twice = dataclasses.replace(once, total=3.0 * once.total)
    view = views.sums_over_rounds([once, twice])
    assert np.allclose(view.reading(made.public(session)), 2.0 * once.total)
    with pytest.raises(ConfigError, match="at least one"):
        views.sums_over_rounds([])


def test_a_released_adapter_reads_as_its_distance_from_the_first_one(plain):
    made, session, sent, _, _ = plain
    state = adapter_state(made.model)
    moved = made.layout.unflatten(sent[attacked.VICTIM])
    released = state | {name: state[name] + moved[name] for name in made.layout.names}
    view = views.released_adapter(released, clients=3)
    assert np.allclose(view.reading(made.public(session)), sent[attacked.VICTIM], atol=1e-6)
    assert view.contributions == 3
