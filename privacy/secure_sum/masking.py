"""Masks: a stream cipher's output, added to or subtracted from uint64 words modulo 2**64.

A mask key encrypts one stream and is used once. Keys come from X25519 (RFC 7748) or a random seed through HKDF-SHA256
(RFC 5869), bound to the roster (and with it to federation, plan and run), the question, the round and the pair. Streams
are ChaCha20 (RFC 8439) over zeros.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cohortium.privacy.secure_sum.messages import message_bytes
from cohortium.study.errors import RefusedError

__all__ = ["add_masks", "agreed_secret", "derive_key", "pair_key", "self_key"]

_CHUNK_WORDS = 2**15  # zeros, stream and words of a chunk fit together into a megabyte of cache
_ZEROS = memoryview(bytes(8 * _CHUNK_WORDS))
_NONCE = bytes(16)  # a key encrypts one stream


def add_masks(total: NDArray[np.uint64], added: Iterable[bytes], subtracted: Iterable[bytes]) -> None:
    """Add and subtract the masks of many keys in place, modulo 2**64, chunk by chunk, so that chunks stay in cache.

    Args:
        total: uint64, C-contiguous, any number of words.
        added, subtracted: keys of 32 bytes; each masks, and later unmasks, this one vector.
    """
    combined = [(_stream(key), np.add) for key in added] + [(_stream(key), np.subtract) for key in subtracted]
    buffer = np.empty(min(len(total), _CHUNK_WORDS), dtype="<u8")
    for start in range(0, len(total), _CHUNK_WORDS):
        part = total[start : start + _CHUNK_WORDS]
        words = buffer[: len(part)]
        zeros, output = _ZEROS[: words.nbytes], words.view(np.uint8).data
        for stream, combine in combined:
            stream.update_into(zeros, output)
            combine(part, words, out=part)


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()


def agreed_secret(private: X25519PrivateKey, public: bytes) -> bytes:
    """The X25519 shared secret; `RefusedError` for a public key of low order, which would make it known to all."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise RefusedError("a public key that gives no secret") from None


def derive_key(secret: bytes, roster: str, purpose: str, binding: dict[str, str | int]) -> bytes:
    """32 bytes by HKDF-SHA256: salt is the roster's digest, info the purpose and everything the key is bound to."""
    info = message_bytes({"purpose": purpose, **binding})
    return HKDF(algorithm=SHA256(), length=32, salt=roster.encode(), info=info).derive(secret)


def pair_key(secret: bytes, roster: str, question: str, number: int, first: int, second: int) -> bytes:
    """The key of the mask that party `first` adds and party `second` subtracts, first < second."""
    binding: dict[str, str | int] = {"question": question, "round": number, "first": first, "second": second}
    return derive_key(secret, roster, "pair mask", binding)


def self_key(seed: bytes, roster: str, question: str, number: int, party: int) -> bytes:
    """The key of a party's own mask."""
    return derive_key(seed, roster, "self mask", {"question": question, "round": number, "party": party})
