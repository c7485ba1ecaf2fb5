"""Masks are the published ciphers' output bound to everything they serve, and what is added comes off again."""

from __future__ import annotations

import hmac
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.secure_sum.masking import add_masks, agreed_secret, derive_key, pair_key, self_key
from cohortium.privacy.secure_sum.messages import message_bytes
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import RefusedError

CHUNK = 2**15
LENGTHS = [0, 1, 2, 7, 8, 9, 2**13 + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5]
ROSTER, QUESTION = "sha256:" + "4" * 64, "sha256:" + "3" * 64

keys = st.binary(min_size=32, max_size=32)


def add_mask(total: NDArray[np.uint64], key: bytes, *, negative: bool = False) -> None:
    """One key's mask."""
    add_masks(total, () if negative else (key,), (key,) if negative else ())


def mask(key: bytes, length: int) -> Any:
    total = np.zeros(length, dtype=np.uint64)
    add_mask(total, key)
    return total


def rotated(word: int, places: int) -> int:
    return (word << places | word >> 32 - places) & 0xFFFFFFFF


def chacha20_block(key: bytes, counter: int) -> bytes:
    """Section 2.3 of RFC 8439, nonce 0, written out."""
    known = b"expand 32-byte k" + key
    start = [*(int.from_bytes(known[i : i + 4], "little") for i in range(0, 48, 4)), counter, 0, 0, 0]
    state = list(start)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, places in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = rotated(state[z] ^ state[x], places)

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return b"".join(((a + b) & 0xFFFFFFFF).to_bytes(4, "little") for a, b in zip(state, start, strict=True))


def test_a_mask_is_the_key_stream_of_rfc_8439() -> None:
    """Appendix A.1, test vectors 1 and 2: key and nonce 0, blocks 0 and 1."""
    blocks = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert mask(bytes(32), 16).astype("<u8").tobytes().hex() == blocks


def test_blocks_count_up_across_chunks() -> None:
    """Against the cipher written out, at the seams of chunks and at the ends."""
    key = bytes(range(32))
    stream = mask(key, 2 * CHUNK + 8).astype("<u8").tobytes()
    for block in (0, 1, CHUNK // 8 - 1, CHUNK // 8, 2 * CHUNK // 8 - 1, 2 * CHUNK // 8):
        assert stream[64 * block : 64 * block + 64] == chacha20_block(key, block)


@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_added_comes_off_again(length: int) -> None:
    rng = np.random.default_rng(length)
    vector = rng.integers(0, 2**64, length, dtype=np.uint64)
    total = vector.copy()
    add_mask(total, bytes(32))
    assert length == 0 or not np.array_equal(total, vector)
    add_mask(total, bytes(32), negative=True)
    assert np.array_equal(total, vector)


@given(key=keys, length=st.integers(0, 70), words=st.integers(0, 2**64 - 1))
def test_masking_is_addition_modulo_2_to_the_64(key: bytes, length: int, words: int) -> None:
    stream = [int(word) for word in mask(key, length)]
    for negative, sign in ((False, 1), (True, -1)):
        total = np.full(length, words, dtype=np.uint64)
        add_mask(total, key, negative=negative)
        assert [int(word) for word in total] == [(words + sign * word) % 2**64 for word in stream]


@pytest.mark.parametrize("length", LENGTHS)
def test_many_masks_at_once_are_one_after_the_other(length: int) -> None:
    added, subtracted = ([bytes([sign, number]) * 16 for number in range(3)] for sign in (1, 2))
    together, apart = (np.arange(length, dtype=np.uint64) for _ in range(2))
    add_masks(together, added, subtracted)
    for key in added:
        add_mask(apart, key)
    for key in subtracted:
        add_mask(apart, key, negative=True)
    assert np.array_equal(together, apart)
    add_masks(together, subtracted, added)
    assert np.array_equal(together, np.arange(length, dtype=np.uint64))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_longer_mask_begins_with_the_shorter_one(length: int) -> None:
    longest = mask(b"\7" * 32, max(LENGTHS))
    assert np.array_equal(mask(b"\7" * 32, length), longest[:length])


def test_masks_reach_into_the_part_of_an_array_that_they_are_given_and_no_further() -> None:
    whole = np.zeros(3 * CHUNK, dtype=np.uint64)
    add_mask(whole[CHUNK : 2 * CHUNK], bytes(32))
    assert not whole[:CHUNK].any()
    assert not whole[2 * CHUNK :].any()
    assert np.array_equal(whole[CHUNK : 2 * CHUNK], mask(bytes(32), CHUNK))


def bytes_are_uniform(data: bytes) -> bool:
    """Chi-square of the 256 byte values and of the 8 places of a word's bytes, at 1e-9 each."""
    values = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8)
    for place in [values.ravel(), *values.T]:
        expected = place.size / 256
        distance = ((np.bincount(place, minlength=256) - expected) ** 2).sum() / expected
        if not chi2.ppf(1e-9, 255) < distance < chi2.isf(1e-9, 255):
            return False
    return True


def test_masks_are_uniform() -> None:
    """And the test has power: one bit that is one per cent off is refused."""
    words = mask(fresh_key(), 2**20)
    assert bytes_are_uniform(words.tobytes())
    rare = np.random.default_rng(0).random(words.size) < 0.02
    assert not bytes_are_uniform(np.where(rare, words | np.uint64(2**63), words).tobytes())


def test_a_masked_constant_is_uniform_and_unrelated_to_another_one() -> None:
    one, other = (np.full(2**18, value, dtype=np.uint64) for value in (0, 2**63 + 12345))
    add_mask(one, fresh_key())
    add_mask(other, fresh_key())
    assert bytes_are_uniform(one.tobytes())
    assert bytes_are_uniform((one - other).tobytes())


def test_secrets_are_those_of_rfc_7748() -> None:
    """Section 6.1, both ways round."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public_alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    public_bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert agreed_secret(X25519PrivateKey.from_private_bytes(alice), public_bob) == secret
    assert agreed_secret(X25519PrivateKey.from_private_bytes(bob), public_alice) == secret


@pytest.mark.parametrize(
    "public",
    [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255, 2**255 + 1],
    ids=["0", "1", "p-1", "p", "p+1", "0 with the unused bit", "1 with the unused bit"],
)
def test_a_public_key_of_low_order_gives_no_secret(public: int) -> None:
    with pytest.raises(RefusedError, match="gives no secret"):
        agreed_secret(X25519PrivateKey.generate(), public.to_bytes(32, "little"))


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_a_public_key_of_another_length_gives_no_secret(public: bytes) -> None:
    with pytest.raises(RefusedError, match="gives no secret"):
        agreed_secret(X25519PrivateKey.generate(), public)


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, written out, for at most 64 bytes."""
    extracted = hmac.digest(salt, secret, "sha256")
    first = hmac.digest(extracted, info + b"\1", "sha256")
    return (first + hmac.digest(extracted, first + info + b"\2", "sha256"))[:length]


def test_the_written_out_hkdf_is_that_of_rfc_5869() -> None:
    """Appendix A.1."""
    output = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert output.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


@given(secret=keys, number=st.integers(0, 2**31 - 1), first=st.integers(0, 63), second=st.integers(64, 127))
def test_keys_are_hkdf_bound_to_what_they_serve(secret: bytes, number: int, first: int, second: int) -> None:
    info = canonical_bytes(
        {"first": first, "purpose": "pair mask", "question": QUESTION, "round": number, "second": second}
    )
    expected = hkdf(secret, ROSTER.encode(), info, 32)
    assert pair_key(secret, ROSTER, QUESTION, number, first, second) == expected
    info = canonical_bytes({"party": first, "purpose": "self mask", "question": QUESTION, "round": number})
    assert self_key(secret, ROSTER, QUESTION, number, first) == hkdf(secret, ROSTER.encode(), info, 32)


def test_keys_differ_in_everything_they_are_bound_to() -> None:
    secret, other = bytes(32), "sha256:" + "5" * 64
    many = [
        pair_key(secret, ROSTER, QUESTION, 0, 1, 2),
        pair_key(b"\1" * 32, ROSTER, QUESTION, 0, 1, 2),
        pair_key(secret, other, QUESTION, 0, 1, 2),
        pair_key(secret, ROSTER, other, 0, 1, 2),
        pair_key(secret, ROSTER, QUESTION, 1, 1, 2),
        pair_key(secret, ROSTER, QUESTION, 0, 0, 2),
        pair_key(secret, ROSTER, QUESTION, 0, 1, 3),
        self_key(secret, ROSTER, QUESTION, 0, 1),
        derive_key(secret, ROSTER, "share box", {"dealer": 1, "recipient": 2}),
        derive_key(secret, ROSTER, "share box", {"dealer": 2, "recipient": 1}),
    ]
    assert len(set(many)) == len(many)


documents = st.dictionaries(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=4),
    st.recursive(
        st.text(max_size=8) | st.integers(-(2**53) + 1, 2**53 - 1),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abAB_01"), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=6,
)


@given(document=documents)
def test_message_bytes_are_the_canonical_json_of_rfc_8785(document: dict[str, Any]) -> None:
    """Against an implementation for all of JSON; hypothesis draws control characters, quotes and all of Unicode."""
    assert message_bytes(document) == canonical_bytes(document)


def test_message_bytes_escape_as_rfc_8785_does() -> None:
    document = {"text": "".join(map(chr, [*range(0x3000), 0xFEFF, 0xFFFF, 0x1F600]))}
    assert message_bytes(document) == canonical_bytes(document)
