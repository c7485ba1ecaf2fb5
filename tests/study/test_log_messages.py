"""Messages about audit logs: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.study.errors import RefusedError
from cohortium.study.witness import (
    Growth,
    LogNews,
    Statement,
    ToCosign,
    Witnessed,
    WitnessReply,
    WitnessRequest,
)

DIGEST = "sha256:" + "0" * 64
SECRET = "customer 4711"

sizes = st.integers(0, 2**53 - 1)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
proofs = st.lists(hashes, max_size=64).map(tuple)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
growths = st.builds(Growth, old=sizes, proof=proofs)
many_growths = st.lists(growths, max_size=3).map(tuple)
news = st.builds(LogNews, checkpoint=texts, growth=many_growths)
leaves = st.binary(min_size=1, max_size=200).map(bytes.hex)
statements = st.builds(
    Statement,
    checkpoint=texts,
    growth=many_growths,
    index=sizes,
    entry=leaves,
    inclusion=proofs,
    cosigned=st.none() | texts,
)
requests = st.builds(
    WitnessRequest,
    plan=st.just(DIGEST),
    growth_from=st.lists(sizes, max_size=4).map(tuple),
    cosigned=st.none() | texts,
    to_cosign=st.lists(st.builds(ToCosign, growth=growths, checkpoint=texts), max_size=3).map(tuple),
)
witnessed = st.builds(Witnessed, log=texts, size=sizes, line=st.none() | texts)
replies = st.builds(
    WitnessReply, checkpoint=texts, growth=many_growths, witnessed=st.lists(witnessed, max_size=3).map(tuple)
)

EXAMPLES: dict[str, Any] = {
    "news": LogNews(checkpoint="note", growth=(Growth(old=1, proof=("0" * 64,)),)),
    "statement": Statement(
        checkpoint="note", growth=(Growth(old=1),), index=1, entry="00", inclusion=("0" * 64,), cosigned="note"
    ),
    "request": WitnessRequest(
        plan=DIGEST,
        growth_from=(1,),
        cosigned="note",
        to_cosign=(ToCosign(growth=Growth(old=1, proof=("0" * 64,)), checkpoint="note"),),
    ),
    "reply": WitnessReply(
        checkpoint="note", growth=(Growth(old=1),), witnessed=(Witnessed(log="log", size=1, line="line"),)
    ),
}


def refused(kind: type[Any], data: bytes) -> None:
    with pytest.raises(RefusedError, match="malformed message") as caught:
        kind.from_bytes(data)
    assert SECRET not in str(caught.value)


def parts(value: Any) -> list[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, list):
        return [found for one in value for found in parts(one)]
    if not isinstance(value, dict):
        return []
    return [value, *(found for one in value.values() for found in parts(one))]


def written(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@given(st.one_of(news, statements, requests, replies))
def test_what_is_written_is_read(message: Any) -> None:
    again = type(message).from_bytes(message.to_bytes())
    assert again == message
    assert again.to_bytes() == message.to_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_may_be_missing_more_or_of_another_type(name: str) -> None:
    message = EXAMPLES[name]
    kind, data = type(message), message.to_bytes()
    assert written(json.loads(data)) == data, "the changes below are the only ones"
    for index in range(len(parts(json.loads(data)))):
        whole = json.loads(data)
        part = parts(whole)[index]
        part["more"] = SECRET
        refused(kind, written(whole))
        del part["more"]
        for field, value in list(part.items()):
            del part[field]
            refused(kind, written(whole))
            for other in (SECRET if not isinstance(value, str) else 4711, True, 1.5, -1, 2**53, [SECRET], {}, ""):
                part[field] = other
                refused(kind, written(whole))
            part[field] = value
        assert written(whole) == data


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_one_spelling(name: str) -> None:
    message = EXAMPLES[name]
    kind, data = type(message), message.to_bytes()
    refused(kind, json.dumps(json.loads(data), sort_keys=True).encode())
    refused(kind, json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode())
    refused(kind, data + b"\n")
    refused(kind, data[:-1] + b',"growth":[]}')
    refused(kind, data.replace(b":1", b":1.0"))
    refused(kind, data.replace(b'"note"', b'"\\u006eote"'))
    for nonsense in (b"", b"null", b"[]", b"\xff", b"[" * 100_000, data[:-1], SECRET.encode()):
        refused(kind, nonsense)


def test_sizes_are_bounded() -> None:
    say = EXAMPLES["statement"]
    for field, most, too_much in (
        ("checkpoint", "n" * 2**16, "n" * (2**16 + 1)),
        ("cosigned", "n" * 2**16, "n" * (2**16 + 1)),
        ("entry", "00" * 8192, "00" * 8193),
        ("inclusion", ("0" * 64,) * 64, ("0" * 64,) * 65),
        ("index", 2**53 - 1, 2**53),
    ):
        fits = say.model_copy(update={field: most})
        assert Statement.from_bytes(fits.to_bytes()) == fits
        refused(Statement, written({**json.loads(say.to_bytes()), field: too_much}))
    for entry in ("0", "000", "0G", "AB", " 00"):
        refused(Statement, written({**json.loads(say.to_bytes()), "entry": entry}))
    for proof in ("0" * 63, "0" * 65, "A" * 64):
        refused(Statement, written({**json.loads(say.to_bytes()), "inclusion": [proof]}))
    large = LogNews(checkpoint="n", growth=tuple(Growth(old=1, proof=("0" * 64,) * 64) for _ in range(300)))
    assert len(large.to_bytes()) > 2**20
    refused(LogNews, large.to_bytes())
    crowd = {**json.loads(EXAMPLES["request"].to_bytes()), "growth_from": [1] * 1025}
    refused(WitnessRequest, written(crowd))
    assert WitnessRequest.from_bytes(written({**crowd, "growth_from": [1] * 1024})).growth_from == (1,) * 1024
    refused(WitnessRequest, written({**crowd, "growth_from": [], "plan": DIGEST[:-1]}))
