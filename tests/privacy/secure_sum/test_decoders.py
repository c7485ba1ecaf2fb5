"""Every message: its own bytes come back, anything else is refused, with no other exception and without delay."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.privacy.secure_sum import messages
from cohortium.privacy.secure_sum.messages import Wire
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import RefusedError

KINDS: dict[str, type[Wire]] = {
    kind.__name__: kind
    for kind in (
        messages.Introduction,
        messages.Roster,
        messages.OfferHead,
        messages.Offer,
        messages.OfferTo,
        messages.SumInput,
        messages.Contributed,
        messages.SurvivorSet,
        messages.Consent,
        messages.UnmaskRequest,
        messages.Opened,
        messages.ShareRequest,
    )
}

QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=digits // 2, max_size=digits // 2).map(bytes.hex)


digests = hexadecimal(64).map("sha256:".__add__)
runs, keys, signatures, shares, boxes = (hexadecimal(digits) for digits in (32, 64, 128, 66, 188))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
parties, rounds = st.integers(0, 127), st.integers(0, 2**31 - 1)


def some(element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(element, max_size=4).map(tuple)


introductions = st.builds(
    messages.Introduction,
    federation=digests,
    plan=digests,
    run=runs,
    institution=names,
    channel_key=keys,
    signing_key=keys,
    signature=signatures,
)
rosters = st.builds(messages.Roster, introductions=some(introductions))
heads = st.builds(
    messages.OfferHead,
    roster=digests,
    round=rounds,
    party=parties,
    mask_key=keys,
    commitment=digests,
    signature=signatures,
)
offers = st.builds(messages.Offer, head=heads, boxes=some(boxes))
offers_to = st.builds(messages.OfferTo, head=heads, box=boxes)
consents = st.builds(messages.Consent, party=parties, signature=signatures)
survivor_sets = st.builds(
    messages.SurvivorSet,
    run=runs,
    round=rounds,
    question=digests,
    asked=digests,
    survivors=some(parties),
    dropped=some(parties),
    notes=some(signatures),
)
VALID: dict[str, st.SearchStrategy[Wire]] = {
    "Introduction": introductions,
    "Roster": rosters,
    "OfferHead": heads,
    "Offer": offers,
    "OfferTo": offers_to,
    "SumInput": st.builds(messages.SumInput, run=runs, round=rounds, offers=some(offers_to)),
    "Contributed": st.builds(
        messages.Contributed, roster=digests, round=rounds, party=parties, question=digests, asked=digests
    ),
    "SurvivorSet": survivor_sets,
    "Consent": consents,
    "UnmaskRequest": st.builds(messages.UnmaskRequest, survivor_set=survivor_sets, consents=some(consents)),
    "Opened": st.builds(
        messages.Opened,
        run=runs,
        round=rounds,
        party=parties,
        survivor_set=digests,
        seeds=some(shares),
        keys=some(shares),
        next_offer=offers,
    ),
    "ShareRequest": st.builds(messages.ShareRequest, run=runs, round=rounds, roster=rosters),
}


def refuses_or_is_identical(kind: type[Wire], data: bytes) -> bool:
    """Whether the bytes were accepted, in which case they are the message's one serialisation."""
    started = time.perf_counter()
    try:
        message = kind.from_bytes(data)
    except RefusedError as refused:
        quoted = str(refused) != "malformed message — fix: run the same cohortium version on both sides"
        if quoted or time.perf_counter() - started > 5:
            raise AssertionError("a refusal that quotes the message, or comes late") from refused
        return False
    assert message.to_bytes() == data
    assert canonical_bytes(message.model_dump(mode="json")) == data
    return True


def mutate(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """One to three small changes."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        upto = draw(st.integers(at, min(len(data), at + 200)))
        piece = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b" ", b"\\u0061", b"-0", b"1e0", b"null", b'"']))
        )
        data = draw(
            st.sampled_from(
                [
                    data[:at] + piece + data[at + 1 :],
                    data[:at] + piece + data[at:],
                    data[:at] + data[upto:],
                    data[:upto] + data[at:],
                    data[:at],
                    data + piece,
                ]
            )
        )
    return data


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_message_comes_back(name: str) -> None:
    assert set(VALID) == set(KINDS)

    @settings(QUICK, max_examples=25)
    @given(message=VALID[name])
    def there_and_back(message: Wire) -> None:
        data = message.to_bytes()
        assert KINDS[name].from_bytes(data) == message
        assert data == canonical_bytes(message.model_dump(mode="json"))
        accepted = [other for other, kind in KINDS.items() if refuses_or_is_identical(kind, data)]
        assert accepted == [name]

    there_and_back()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_changed_message_is_refused_or_another_message(name: str) -> None:
    @QUICK
    @given(message=VALID[name], draw=st.data())
    def changed(message: Wire, draw: Any) -> None:
        refuses_or_is_identical(KINDS[name], mutate(message.to_bytes(), draw.draw))

    changed()


def documents() -> st.SearchStrategy[Any]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_field_of_another_type_is_refused(name: str) -> None:
    @settings(QUICK, max_examples=30)
    @given(message=VALID[name], value=documents(), draw=st.data())
    def replaced(message: Wire, value: Any, draw: Any) -> None:
        document = json.loads(message.to_bytes())
        field = draw.draw(st.sampled_from(sorted(document)))
        if type(value) is type(document[field]) or value == document[field]:
            value = None
        document[field] = value
        assert not refuses_or_is_identical(KINDS[name], json.dumps(document, sort_keys=True).encode())
        del document[field]
        if "signature" not in field:
            assert not refuses_or_is_identical(KINDS[name], json.dumps(document, separators=(",", ":")).encode())

    replaced()


def sample(name: str) -> bytes:
    """One valid message with an entry in every list, the same in every run."""
    key, digest, signature = "ab" * 32, "sha256:" + "cd" * 32, "ef" * 64
    head = messages.OfferHead(roster=digest, round=1, party=2, mask_key=key, commitment=digest, signature=signature)
    introduction = messages.Introduction(
        federation=digest,
        plan=digest,
        run="12" * 16,
        institution="Crédit Ünion",
        channel_key=key,
        signing_key=key,
        signature=signature,
    )
    common: dict[str, Any] = {"run": "12" * 16, "round": 1}
    offer, roster = messages.Offer(head=head, boxes=("34" * 94,)), messages.Roster(introductions=(introduction,))
    offer_to, consent = messages.OfferTo(head=head, box="34" * 94), messages.Consent(party=1, signature=signature)
    chosen = messages.SurvivorSet(
        **common, question=digest, asked=digest, survivors=(0, 1), dropped=(2,), notes=(signature,)
    )
    opened = messages.Opened(
        **common, party=1, survivor_set=digest, seeds=("01" * 33,), keys=("02" * 33,), next_offer=offer
    )
    note = messages.Contributed(roster=digest, round=1, party=2, question=digest, asked=digest)
    whole: tuple[Wire, ...] = (introduction, roster, head, offer, offer_to, note, chosen, consent, opened)
    whole += (
        messages.SumInput(**common, offers=(offer_to,)),
        messages.UnmaskRequest(survivor_set=chosen, consents=(consent,)),
        messages.ShareRequest(**common, roster=roster),
    )
    return {type(message).__name__: message for message in whole}[name].to_bytes()


def disguises(data: bytes) -> dict[str, bytes]:
    """Other ways to write the same message, and ways to trouble a parser."""
    document = json.loads(data)
    first, last = next(iter(document)), list(document)[-1]
    one = json.dumps(document[first]).encode()
    return {
        "spaces": json.dumps(document).encode(),
        "a space at the end": data + b" ",
        "a line break before": b"\n" + data,
        "a byte order mark": b"\xef\xbb\xbf" + data,
        "twice": data + data,
        "another order": json.dumps(
            dict(reversed(document.items())), separators=(",", ":"), ensure_ascii=False
        ).encode()
        if len(document) > 1
        else b" " + data,
        "a repeated key": data[:-1] + b',"' + last.encode() + b'":' + json.dumps(document[last]).encode() + b"}",
        "a repeated key before": b'{"' + first.encode() + b'":' + one + b"," + data[1:],
        "an escape": re.sub(rb"ab", rb"a\\u0062", data, count=1) if b"ab" in data else data[:-1],
        "an escaped key": data.replace(first.encode(), f"\\u{ord(first[0]):04x}{first[1:]}".encode(), 1),
        "upper case": re.sub(rb"[a-f]{2}", lambda found: found[0].upper(), data),
        "an unknown field": data[:-1] + b',"zz":0}',
        "a comma too many": data[:-1] + b",}",
        "UTF-16": data.decode().encode("utf-16"),
        "not UTF-8": data[:-2] + b"\xff" + data[-2:],
        "a lone surrogate": data.replace(b'":"', b'":"\\ud800', 1),
        "a NUL": data[:1] + b"\0" + data[1:],
        "nested lists": b"[" * 100_000,
        "nested objects": b'{"run":' * 100_000,
        "nested in a field": data[: data.index(b":") + 1] + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "a million bytes more": data + b" " * 2**20,
        "a long number": data[:-1] + b',"zz":' + b"9" * 100_000 + b"}",
        "nothing": b"",
        "null": b"null",
        "a list": b"[" + data + b"]",
        "not a number": b"NaN",
    }


@pytest.mark.parametrize("name", sorted(KINDS))
def test_no_other_way_to_write_a_message(name: str) -> None:
    data = sample(name)
    assert refuses_or_is_identical(KINDS[name], data)
    for disguise, other in disguises(data).items():
        assert other != data, disguise
        assert not refuses_or_is_identical(KINDS[name], other), disguise
    numbered = re.compile(rb'("(?:round|party)":)(\d+)')
    if numbered.search(data):
        for number in (b"1.0", b"1e0", b"-0", b"01", b"+1", b'"1"', b"true", b"-1", b"2147483648", b"1E400", b"0x1"):
            assert not refuses_or_is_identical(KINDS[name], numbered.sub(rb"\g<1>" + number, data, count=1)), number
    for value in (None, data.decode(), bytearray(data), memoryview(data), 3):
        with pytest.raises(RefusedError):
            KINDS[name].from_bytes(value)


def test_lists_are_bounded() -> None:
    chosen = json.loads(sample("SurvivorSet"))
    assert refuses_or_is_identical(messages.SurvivorSet, canonical_bytes({**chosen, "survivors": list(range(128))}))
    for wrong in (list(range(129)), [128], [-1]):
        assert not refuses_or_is_identical(messages.SurvivorSet, canonical_bytes({**chosen, "survivors": wrong}))


def test_no_signature_serves_two_kinds_of_message() -> None:
    """What is signed begins with the kind, and no kind is the beginning of another's signed bytes."""
    signables = [kind.from_bytes(sample(name)).signable for name, kind in KINDS.items()]
    prefixes = [signable.split(b"\0")[0] for signable in signables]
    assert len(set(prefixes)) == len(KINDS)
    assert all(b"{" not in prefix for prefix in prefixes)


# --- what both sides do with changed messages ------------------------------------------------------------------------


def test_changed_messages_stop_nobody(make_sums: Callable[..., Any], make_vectors: Callable[..., list[Any]]) -> None:
    """Institutions and coordinator refuse them, and go on: the sum is exact in the end."""
    sums, vectors = make_sums(5, 4), make_vectors(5)
    sums.share(1, absent={4})
    attempt = sums.aggregator.begin(1, question := f"sha256:{9:064x}")
    sums.inputs(attempt, vectors, question, set())
    chosen = attempt.choose_survivors()
    for party in range(4):
        attempt.take_consent(party, sums.of(party).consent(chosen))
    request = attempt.unmask_request()
    payloads: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
        "share": (sums.aggregator.share_request(2), lambda m: sums.of(0).share(m)),
        "input": (attempt.input_request(0), lambda m: sums.of(0).begin(m, question)),
        "consent": (chosen, lambda m: sums.of(0).consent(m)),
        "unmask": (request, lambda m: sums.of(0).unmask(m)),
        "introduction": (sums.of(1).introduce(), lambda m: sums.aggregator.introduce(m)),
        "offer": (sums.aggregator._offer(1, 1).to_bytes(), lambda m: sums.aggregator.take_offer(m, 1, 3)),
        "signature": (sums.of(1).consent(chosen), lambda m: attempt.take_consent(1, m)),
        "opened": (sums.of(1).unmask(request), lambda m: attempt.take_opened(1, m)),
    }
    refused = dict.fromkeys(payloads, 0)

    @settings(QUICK, max_examples=150)
    @given(draw=st.data())
    def change(draw: Any) -> None:
        name = draw.draw(st.sampled_from(sorted(payloads)))
        payload, take = payloads[name]
        if draw.draw(st.booleans()):
            changed = mutate(payload, draw.draw)
        else:  # one hexadecimal digit for another: it still parses
            places = [found.start() for found in re.finditer(rb"[0-9a-f]", payload)]
            at = places[draw.draw(st.integers(0, len(places) - 1))]
            changed = payload[:at] + draw.draw(st.sampled_from([b"0", b"7", b"a", b"f"])) + payload[at + 1 :]
        try:
            take(changed)
        except RefusedError:
            refused[name] += 1

    change()
    assert min(refused.values()) > 0
    for party in range(4):
        attempt.take_opened(party, sums.of(party).unmask(request))
    expected = np.sum([vector.view(np.uint64) for vector in vectors[:4]], axis=0, dtype=np.uint64)
    assert (attempt.total().view(np.uint64) == expected).all()
