"""Scripted attacks on a secure sum: each fails, with its reason. The server is malicious; in some, sites help it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from federation.keys.certificates import ca_certificate, certificate_pem, new_key, site_certificate
from federation.secure_aggregation import dealing, shamir
from federation.secure_aggregation.encoding import FixedPoint
from federation.secure_aggregation.identity import CertifiedDirectory, KeyIdentity
from federation.secure_aggregation.keys import new_pair
from federation.secure_aggregation.messages import Advertisement, Context, SecureAggregationError
from federation.secure_aggregation.server_session import ServerSession
from federation.secure_aggregation.site_session import SiteSession
from foundation.errors import StudyError, TrainingError
from tests.federation.secure_aggregation.federation_of_sites import (
    CA,
    CA_KEY,
    CONTEXT,
    DIRECTORY,
    FIXED,
    IDENTITIES,
    NOW,
    MemoryStore,
    Sites,
    requested,
    run_honestly,
)


def refused(call: Callable[[], object], site: str = "") -> str:
    """The one line of a refusal that blames ``site``, or nobody."""
    with pytest.raises(SecureAggregationError) as caught:
        call()
    assert caught.value.site == site
    text = str(caught.value)
    assert "\n" not in text and (not site or text.startswith(f"site '{site}' "))
    return text


def test_attack_two_survivor_lists_to_two_halves() -> None:
    sites = Sites(8, numbers=4)
    sites.masked()
    with_g, with_h = sites.names[:7], [*sites.names[:6], "site-h"]
    first = sites.signatures(with_g, ["site-a", "site-b", "site-c", "site-g"])
    second = sites.signatures(with_h, ["site-d", "site-e", "site-f", "site-h"])
    few = "shares are asked for with 4 signatures of survivors; 6 are needed"
    assert refused(lambda: sites.sessions["site-a"].unmask(requested(with_g, first))) == few
    assert refused(lambda: sites.sessions["site-d"].unmask(requested(with_h, second))) == few
    # The other half's signatures are under another list, and nobody signs a second one.
    both = first | second
    text = refused(lambda: sites.sessions["site-a"].unmask(requested(with_g, {n: both[n] for n in with_g})), "site-d")
    assert "has a signature that does not fit" in text
    assert "signs one a round" in refused(lambda: sites.sessions["site-a"].sign(with_h))


def test_attack_substituted_key() -> None:
    sites = Sites(4, numbers=4)
    advertisements = sites.advertise()
    false = new_pair().public
    for part in ("mask_key", "seal_key"):
        swapped = [advertisements[0], replace(advertisements[1], **{part: false}), *advertisements[2:]]
        assert "signature that does not fit" in refused(lambda s=swapped: sites.sessions["site-a"].share(s), "site-b")
        assert "own keys are not" in refused(lambda s=swapped: sites.sessions["site-b"].share(s))
    # Signed by another certified site, or by a key that the server certified itself.
    blank = replace(advertisements[1], mask_key=false)
    helped = replace(blank, signature=IDENTITIES["site-d"].sign(blank.signed(CONTEXT)))
    assert "does not fit" in refused(lambda: sites.sessions["site-a"].share(swap(advertisements, helped)), "site-b")
    helped = replace(helped, certificate=IDENTITIES["site-d"].certificate)
    assert "another name" in refused(lambda: sites.sessions["site-a"].share(swap(advertisements, helped)), "site-b")
    key = new_key()
    own_ca = ca_certificate(CA_KEY_OF_SERVER, "federation", NOW, 30)
    certificate = certificate_pem(site_certificate(own_ca, CA_KEY_OF_SERVER, key.public_key(), "site-b", NOW, 30))
    forged = KeyIdentity("site-b", key, certificate)
    one = replace(blank, certificate=certificate, signature=forged.sign(blank.signed(CONTEXT)))
    assert "not signed by this federation's CA" in refused(
        lambda: sites.sessions["site-a"].share(swap(advertisements, one)), "site-b"
    )
    sites.share(advertisements)  # and the true ones are taken
    assert "shares are asked for again, of other keys" in refused(
        lambda: sites.sessions["site-a"].share(swap(advertisements, one))
    )


CA_KEY_OF_SERVER = new_key()


def swap(advertisements: list[Advertisement], one: Advertisement) -> list[Advertisement]:
    return [one if each.site == one.site else each for each in advertisements]


@pytest.mark.parametrize("part", ["mask_key", "seal_key"])
def test_attack_small_order_key(part: str) -> None:
    """A site that helps the server signs a key with which every agreed secret is known to all: 0."""
    sites = Sites(3, numbers=4)
    advertisements = sites.advertise()
    blank = replace(advertisements[1], **{part: bytes(32)})
    one = replace(blank, signature=IDENTITIES["site-b"].sign(blank.signed(CONTEXT)))
    sites.sessions["site-b"]._advertisement = one
    group = swap(advertisements, one)

    def up_to_masks() -> None:
        dealt = {name: sites.sessions[name].share(group) for name in ("site-b", "site-c", "site-a")}
        sites.mask("site-a", dealt)

    assert "advertises a key that is none" in refused(up_to_masks, "site-b")


def test_attack_different_keys_or_members_to_different_sites() -> None:
    """The signatures under the survivors cover both, so that sites with other views do not finish together."""
    sites = Sites(4, numbers=4)
    dealt = sites.share(sites.advertise())
    listed = ["site-a", "site-b", "site-c"]
    for name in listed:
        sites.mask(name, dealt, listed if name == "site-a" else sites.names)
    signatures = sites.signatures(listed, listed)
    assert "does not fit" in refused(lambda: sites.sessions["site-a"].unmask(requested(listed, signatures)), "site-b")

    sites = Sites(4, numbers=4)
    other = Sites(4, numbers=4)
    advertisements = sites.advertise()
    seen_by_c = [*advertisements[:3], other.advertise()[3]]  # two sessions of site-d
    for name in sites.names[:3]:
        sites.sessions[name].share(seen_by_c if name == "site-c" else advertisements)
    dealt = {name: sites.sessions[name]._dealt for name in listed}
    text = refused(lambda: sites.mask("site-a", {n: one for n, one in dealt.items() if one}, listed), "site-c")
    assert "does not fit" in text


def test_attack_replayed_round() -> None:
    store = {name: MemoryStore() for name in IDENTITIES}
    old = Sites(4, numbers=4, stores=store)
    old_advertisements = old.advertise()
    old_dealt = old.share(old_advertisements)
    for name in old.names:
        old.mask(name, old_dealt)
    old_signatures = old.signatures(old.names, old.names)
    for context in (Context(CONTEXT.study_hash, 5, 0), Context(CONTEXT.study_hash, 4, 1), Context("6" * 64, 4, 0)):
        new = Sites(4, context, numbers=4, stores={name: MemoryStore() for name in IDENTITIES})
        site = new.sessions["site-a"]
        advertisements = new.advertise()
        mixed = swap(old_advertisements, advertisements[0])
        assert "does not fit" in refused(lambda s=site, m=mixed: s.share(m), "site-b")
        assert "own keys are not" in refused(lambda s=site: s.share(old_advertisements))
        dealt = new.share(advertisements)
        stale = {**dealt, "site-b": old_dealt["site-b"]}
        assert "does not fit" in refused(lambda n=new, d=stale: n.mask("site-a", d), "site-b")
        for name in new.names:
            new.mask(name, dealt)
        new.signatures(new.names, new.names)
        assert "does not fit" in refused(lambda s=site: s.unmask(requested(old.names, old_signatures)), "site-a")


def test_attack_replayed_signatures_of_an_attempt_with_other_keys() -> None:
    """The server gives a new attempt an old number: what was signed under the old keys counts for nothing."""
    old = Sites(4, numbers=4)
    old.masked()
    signatures = old.signatures(old.names, old.names)
    new = Sites(4, numbers=4, stores=old.stores)
    new.masked()
    new.signatures(new.names, new.names)
    assert "does not fit" in refused(lambda: new.sessions["site-a"].unmask(requested(new.names, signatures)), "site-a")


def test_attack_rerun_of_a_round_with_another_set() -> None:
    first = Sites(4)
    run_honestly(first, {2: ["site-c"]})
    again = Sites(4, Context(CONTEXT.study_hash, CONTEXT.round, 1), stores=first.stores)
    again.masked()
    for another in (again.names, ["site-b", "site-c", "site-d"]):
        assert "round 4: this site has signed another list of survivors" in refused(
            lambda a=another: again.sessions["site-b"].sign(a)
        )
    again.restart("site-b")
    assert "signed another list" in refused(lambda: again.sessions["site-b"].sign(again.names))
    assert again.sessions["site-c"].sign(again.names)  # it has signed none; alone it is no threshold
    assert again.sessions["site-b"].sign(["site-a", "site-b", "site-d"])


def test_attack_single_survivor() -> None:
    sites = Sites(4, numbers=4)
    assert "1 sites are advertised" in refused(lambda: sites.sessions["site-a"].share(sites.advertise()[:1]))
    assert "2 sites are advertised" in refused(lambda: sites.sessions["site-a"].share(sites.advertise()[:2]))
    dealt = sites.share(sites.advertise())
    assert "1 of 4 sites have shared; at least 3" in refused(lambda: sites.mask("site-a", dealt, ["site-a"]))
    for name in sites.names:
        sites.mask(name, dealt)
    site = sites.sessions["site-a"]
    assert refused(lambda: site.sign(["site-a"])) == ("1 of 4 sites are listed as survivors; at least 3 are needed")
    assert "not listed once each" in refused(lambda: site.sign(["site-a", "site-a", "site-a"]))
    assert "not listed once each" in refused(lambda: site.sign(["site-b", "site-a", "site-c"]))
    assert "not among the survivors" in refused(lambda: site.sign(["site-b", "site-c", "site-d"]))
    assert "has not shared" in refused(lambda: site.sign(["site-a", "site-b", "site-z"]), "site-z")
    assert sites.stores["site-a"].get(CONTEXT.study_hash, CONTEXT.round, "survivors") is None


def test_attack_one_site_under_two_names_or_twice() -> None:
    sites = Sites(3, numbers=4)
    advertisements = sites.advertise()
    site = sites.sessions["site-a"]
    assert "two sites of the same name" in refused(lambda: site.share([*advertisements, advertisements[1]]))
    alias = replace(advertisements[1], site="site-z")
    assert "another name" in refused(lambda: site.share([*advertisements, alias]), "site-z")
    dealt = sites.share(advertisements)
    forwarded = [dealt["site-b"].only_for("site-a")] * 2
    twice = refused(lambda: site.masked(forwarded, sites.updates["site-a"], 1, FIXED))
    assert twice == "shares of one site are forwarded twice, or this site's own"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0000001, -2.0])
def test_attack_overflowing_fixed_point(value: float) -> None:
    sites = Sites(3, numbers=4)
    dealt = sites.share(sites.advertise())
    sites.updates["site-a"][2] = value
    with pytest.raises(TrainingError, match="it is not sent, as it would overflow; raise largest_value"):
        sites.mask("site-a", dealt)


def test_attack_scale_that_lets_sums_overflow() -> None:
    sites = Sites(3, numbers=4)
    dealt = sites.share(sites.advertise())
    forwarded = [dealt[other].only_for("site-a") for other in ("site-b", "site-c")]
    greedy = FixedPoint(1.0, 1000, scale=2**31 / 3)
    with pytest.raises(StudyError, match="can overflow 31 bits above"):
        sites.sessions["site-a"].masked(forwarded, sites.updates["site-a"], 1, greedy)


def test_attack_shares_asked_for_both_for_a_survivor_and_as_dropout() -> None:
    sites = Sites(4, numbers=4)
    sites.masked()
    survivor, missing = sites.names, ["site-a", "site-b", "site-c"]  # of site-d
    request = requested(survivor, sites.signatures(survivor, survivor))
    released = sites.sessions["site-a"].unmask(request)
    assert set(released.seeds) == set(survivor) and not released.keys
    # site-b and site-c help: they sign the second list as well.
    second = sites.sessions["site-b"]._list(missing, sites.sessions["site-b"]._under_way())
    signatures = {name: IDENTITIES[name].sign(second) for name in ("site-a", "site-b", "site-c")}
    text = "shares are asked for with a list of survivors that this site did not sign"
    assert refused(lambda: sites.sessions["site-a"].unmask(requested(missing, signatures))) == text
    sites.restart("site-a")
    assert refused(lambda: sites.sessions["site-a"].unmask(requested(missing, signatures))) == text
    assert sites.sessions["site-a"].unmask(request) == released


def test_attack_shares_without_a_signature_of_ones_own() -> None:
    sites = Sites(4, numbers=4)
    sites.masked()
    signatures = sites.signatures(sites.names, ["site-b", "site-c", "site-d"])
    assert "did not sign" in refused(lambda: sites.sessions["site-a"].unmask(requested(sites.names, signatures)))
    fresh = SiteSession(CONTEXT, IDENTITIES["site-a"], DIRECTORY, MemoryStore())
    nothing = "an attempt that this site has no masked update in is gone on with; begin anew"
    assert refused(lambda: fresh.unmask(requested(sites.names, signatures))) == nothing
    assert refused(lambda: fresh.sign(sites.names)) == nothing
    assert "before secrets were shared" in refused(lambda: fresh.masked([], sites.updates["site-a"], 1, FIXED))


def test_attack_signature_of_a_site_outside_the_list() -> None:
    sites = Sites(4, numbers=4)
    sites.masked()
    listed = ["site-a", "site-b", "site-c"]
    signatures = sites.signatures(listed, ["site-a", "site-b"])
    message = sites.sessions["site-a"]._list(listed, sites.sessions["site-a"]._under_way())
    signatures["site-d"] = IDENTITIES["site-d"].sign(message)
    text = refused(lambda: sites.sessions["site-a"].unmask(requested(listed, signatures)), "site-d")
    assert "signed a list of survivors that it is not in" in text


def test_attack_expired_certificate() -> None:
    key = new_key()
    certificate = site_certificate(CA, CA_KEY, key.public_key(), "site-a", NOW - timedelta(days=9), 3)
    identity = KeyIdentity("site-a", key, certificate_pem(certificate))
    fault = DIRECTORY.verify("site-a", b"said", identity.sign(b"said"), identity.certificate)
    assert fault.startswith("has a certificate that expired on ")
    assert CertifiedDirectory(CA).verify("site-a", b"said", b"", "none") == "has a certificate that cannot be read"


def at_unmasking(sites: Sites) -> tuple[ServerSession, Callable[[str], object]]:
    """A server that has asked for shares, site-h missing since it shared; how it asks one site."""
    server = sites.server()
    for one in sites.advertise():
        server.add_advertisement(one)
    advertisements = server.advertisements()
    for name in sites.names:
        server.add_shares(sites.sessions[name].share(advertisements))
    forwards = server.forwards()
    present = sites.names[:-1]
    for name in present:
        server.add_masked(sites.sessions[name].masked(forwards[name], sites.updates[name], sites.counts[name], FIXED))
    survivors = server.survivors()
    for name in present:
        server.add_signature(sites.sessions[name].sign(survivors))
    request = server.unmask_request()
    return server, lambda name: sites.sessions[name].unmask(request)


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_attack_wrong_share(kind: str) -> None:
    """A site that releases a wrong share is named, and the sum comes from the others."""
    sites = Sites(8)
    server, ask = at_unmasking(sites)
    true = ask("site-b")
    dealer = "site-c" if kind == "seeds" else "site-h"
    wrong = replace(true, **{kind: {**getattr(true, kind), dealer: bytes(32) + b"\1"}})
    assert f"released a wrong share of site '{dealer}'" in refused(lambda: server.add_unmasking(wrong), "site-b")
    partial = replace(true, seeds={"site-a": true.seeds["site-a"]})
    assert "of other sites than it was asked for" in refused(lambda: server.add_unmasking(partial), "site-b")
    for name in ("site-a", "site-c", "site-d", "site-e", "site-f", "site-g"):
        server.add_unmasking(ask(name))
    assert server.total().survivors == tuple(sites.names[:-1])


def test_attack_shares_other_than_committed_to() -> None:
    sites = Sites(4, numbers=4)
    dealt = sites.share(sites.advertise())
    with_others = replace(dealt["site-b"], sealed={"site-a": dealt["site-b"].sealed["site-c"]})
    assert "do not open" in refused(lambda: sites.mask_with("site-a", dealt, with_others), "site-b")
    without = replace(dealt["site-b"], commitments={"site-a": dealt["site-b"].commitments["site-a"]})
    text = refused(lambda: sites.mask_with("site-a", dealt, without), "site-b")
    assert "with other sites than were advertised" in text
    moved = {**dealt["site-b"].commitments, "site-a": dealt["site-b"].commitments["site-c"]}
    blank = replace(dealt["site-b"], commitments=moved)
    assert "does not fit" in refused(lambda: sites.mask_with("site-a", dealt, blank), "site-b")
    group = dealing.group_digest(sites.advertise())
    signed = replace(blank, signature=IDENTITIES["site-b"].sign(blank.signed(CONTEXT, group)))
    assert "other shares than it committed to" in refused(lambda: sites.mask_with("site-a", dealt, signed), "site-b")


@pytest.mark.parametrize("missing", [False, True])
def test_attack_dealer_whose_shares_give_no_secret(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits to what it deals, so only the secret shows it."""
    dealer = "site-d" if missing else "site-b"
    sites = Sites(4)
    server = sites.server()
    for one in sites.advertise():
        server.add_advertisement(one)
    advertisements = server.advertisements()
    for name in sites.names:
        with monkeypatch.context() as patched:
            if name == dealer:
                patched.setattr(dealing, "share", lambda secret, t, n: shamir.share(bytes(32), t, n))
            server.add_shares(sites.sessions[name].share(advertisements))
    forwards = server.forwards()
    present = sites.names[:3]
    for name in present:
        server.add_masked(sites.sessions[name].masked(forwards[name], sites.updates[name], sites.counts[name], FIXED))
    survivors = server.survivors()
    for name in present:
        server.add_signature(sites.sessions[name].sign(survivors))
    request = server.unmask_request()
    for name in present:
        server.add_unmasking(sites.sessions[name].unmask(request))
    assert "dealt shares that do not give its secret" in refused(server.total, dealer)


def test_a_vector_that_is_no_update_is_noticed() -> None:
    sites = Sites(4)
    server, ask = at_unmasking(sites)
    server._sum += np.uint32(2**30)  # as if one site had sent noise
    for name in sites.names[:3]:
        server.add_unmasking(ask(name))
    for _ in range(2):
        assert "the masks did not cancel" in refused(server.total)


def test_the_server_takes_one_answer_a_stage_and_none_from_strangers() -> None:
    sites = Sites(4, numbers=4)
    server = sites.server()
    advertisements = sites.advertise()
    for one in advertisements[:3]:
        server.add_advertisement(one)
    assert "has answered this stage already" in refused(lambda: server.add_advertisement(advertisements[0]), "site-a")
    broken = replace(advertisements[3], signature=b"")
    assert "does not fit" in refused(lambda: server.add_advertisement(broken), "site-d")
    group = server.advertisements()
    assert "not open" in refused(lambda: server.add_advertisement(advertisements[3]), "site-d")
    dealt = {name: sites.sessions[name].share(group) for name in sites.names[:3]}
    assert "has advertised no keys" in refused(
        lambda: server.add_shares(replace(dealt["site-a"], site="site-d")), "site-d"
    )
    held_back = replace(dealt["site-a"], sealed={})
    assert "shares for other sites" in refused(lambda: server.add_shares(held_back), "site-a")
    for one in dealt.values():
        server.add_shares(one)
    forwards = server.forwards()
    masked = {
        name: sites.sessions[name].masked(forwards[name], sites.updates[name], sites.counts[name], FIXED)
        for name in sites.names[:3]
    }
    short = replace(masked["site-a"], values=masked["site-a"].values[:-1])
    assert "not uint32 [5]" in refused(lambda: server.add_masked(short), "site-a")
    stranger = replace(masked["site-a"], site="site-d")
    assert "has not shared its secrets" in refused(lambda: server.add_masked(stranger), "site-d")
    for one in masked.values():
        server.add_masked(one)
    assert "answered this stage already" in refused(lambda: server.add_masked(masked["site-a"]), "site-a")
    survivors = server.survivors()
    signed = sites.sessions["site-a"].sign(survivors)
    assert "not among the survivors" in refused(lambda: server.add_signature(replace(signed, site="site-d")), "site-d")
    assert "does not fit" in refused(lambda: server.add_signature(replace(signed, site="site-b")), "site-b")
