"""Fresh key pairs, from the operating system's CSPRNG: identities that sign, and keys of mutual TLS."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.privacy.randomness import fresh_below, fresh_key

__all__ = ["fresh_identity", "fresh_transport"]

# order of the group of P-384 (NIST SP 800-186, 3.2.1.4)
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def fresh_identity() -> Ed25519PrivateKey:
    """An Ed25519 key."""
    return Ed25519PrivateKey.from_private_bytes(fresh_key())


def fresh_transport() -> EllipticCurvePrivateKey:
    """A key on P-384, which is what Flower signs with: a uniform scalar in [1, order)."""
    return derive_private_key(1 + fresh_below(_ORDER - 1), SECP384R1())
