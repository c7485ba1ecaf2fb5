"""Released models: an encoder, or a campaign's ranker, with everything needed to use and to check it.

A model is one safetensors file: arrays of declared shape and dtype, and in its header one entry, `cohortium.model/1`:
the coordinator's Ed25519 signature over the document's digest, 128 hexadecimal digits, and then the document (canonical
JSON). The document names every array by digest, so the signature covers them. Equal models signed by one key are equal
files. Nothing in the file can run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cohortium.study.bundle import ReleaseRecord
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError, OutputError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.question import digest_array
from cohortium.study.reach import Measured, RankerChoice, RankerQuality, ReachCurve

__all__ = [
    "AudienceShare",
    "EncoderModel",
    "FrameFact",
    "LookalikeModel",
    "Model",
    "ModelDocument",
    "array_facts",
    "load_model",
    "save_model",
]

_HEADER = "cohortium.model/1"  # one entry: safetensors writes several in no fixed order
_SIGNED = _HEADER.encode() + b"\0"
_SIGNATURE = 128
_MAX_BYTES = 2**30
_MAX_HEADER = 2**24
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=1, le=2**24)]


class ArrayFact(Agreed):
    """An array of the model: float64, its shape and digest."""

    shape: Annotated[tuple[_Size, ...], Field(min_length=1, max_length=2)]
    digest: _Digest


class ModelDocument(Document):
    """What all released models say.

    Args:
        run: identifies the run.
        institutions: how many answered to the end.
        customers: noisy number of people.
        features: the features that the model reads, in order.
        arrays: every array of the file by name.
        releases: every question in order.
    """

    run: str
    institutions: Annotated[int, Field(ge=1)]
    customers: _Finite
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    arrays: dict[str, ArrayFact]
    releases: tuple[ReleaseRecord, ...]

    @property
    def expires(self) -> date:
        """Last day on which the model may be used."""
        raise NotImplementedError


class FrameFact(Agreed):
    """What was released about a frame beside its arrays (`models.seed_head.FrameFacts`)."""

    people: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    entry_std: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    mean_std: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EncoderModel(ModelDocument):
    """An encoder, and the moments that campaigns start from.

    Args:
        schema_id: `cohortium.encoder/1`; written `schema`.
        plan: the approved plan.
        frames: the frames of features and embedding, by name.
    """

    schema_id: Annotated[Literal["cohortium.encoder/1"], Field(alias="schema")] = "cohortium.encoder/1"
    plan: EncoderPlan
    frames: dict[str, FrameFact]

    @model_validator(mode="after")
    def _as_planned(self) -> EncoderModel:
        self.plan.refuse_left_out(self.features)
        return self

    @property
    def expires(self) -> date:
        """See `ModelDocument`."""
        return self.plan.expires


class AudienceShare(Agreed):
    """One column of the profile: a category's share of people, or the mean of a number.

    Args:
        feature: its name.
        level: of a category, the code's position in the contract's list, the unknown one last; None for a number.
        audience, eligible: in the audience and among everybody eligible, each with its 95% interval for the noise:
            shares from 0 to 1, or means in the contract's unit (of log(1 + x) turned back where the contract takes
            logarithms; winsorised at the released 1% and 99% quantiles).
    """

    feature: str
    level: Annotated[int, Field(ge=0)] | None
    audience: Measured
    eligible: Measured


class LookalikeModel(ModelDocument):
    """A campaign's ranker, its reach-dilution curve, and who its audience is.

    Args:
        schema_id: `cohortium.lookalike/1`; written `schema`.
        plan: the approved plan; names the encoder's model.
        seeds: noisy number of seeds, or None when suppressed.
        choice: which ranker won, and by how much.
        quality: of the ranker that won.
        curve: reach and dilution, and the levels.
        level: of which level the profile is; None without one.
        profile: that audience beside everybody eligible; empty without a share for it or when suppressed.
    """

    schema_id: Annotated[Literal["cohortium.lookalike/1"], Field(alias="schema")] = "cohortium.lookalike/1"
    plan: LookalikePlan
    seeds: _Finite | None
    choice: RankerChoice
    quality: RankerQuality
    curve: ReachCurve
    level: str | None = None
    profile: tuple[AudienceShare, ...] = ()

    @model_validator(mode="after")
    def _as_planned(self) -> LookalikeModel:
        self.plan.refuse_left_out({*self.features, *(share.feature for share in self.profile)})
        return self

    @property
    def expires(self) -> date:
        """See `ModelDocument`."""
        return self.plan.expires


_Document = TypeVar("_Document", bound=ModelDocument)


@dataclass(frozen=True)
class Model(Generic[_Document]):
    """A document and its arrays, float64, by name.

    Raises:
        DataError: an array is missing, surplus or not the one that the document names.
    """

    document: _Document
    arrays: Mapping[str, NDArray[np.float64]]

    def __post_init__(self) -> None:
        if set(self.arrays) != set(self.document.arrays):
            raise DataError("a model's arrays are not those that its document names", fix="export it again")
        for name, fact in self.document.arrays.items():
            array = self.arrays[name]
            same = array.dtype == np.float64 and array.shape == fact.shape and np.isfinite(array).all()
            if not same or digest_array(array) != fact.digest:
                raise DataError(f"array '{name}' is not the one that the document names", fix="export it again")

    @property
    def digest(self) -> str:
        """Of the document, and so of the arrays."""
        return self.document.digest


def array_facts(arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, ArrayFact]:
    """What a document says about its arrays."""
    return {name: ArrayFact(shape=values.shape, digest=digest_array(values)) for name, values in arrays.items()}


def save_model(model: Model[Any], key: Ed25519PrivateKey, path: Path) -> None:
    """Sign a model and write it, durably and whole or not at all; `OutputError` when it cannot be written."""
    signature = key.sign(_SIGNED + model.digest.encode()).hex()
    header = {_HEADER: signature + model.document.to_bytes().decode()}
    data = save({name: np.ascontiguousarray(values) for name, values in model.arrays.items()}, metadata=header)
    staged = path.with_name(path.name + ".partial")
    try:
        staged.write_bytes(data)
        _sync(staged)
        os.replace(staged, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from error


def _sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_model(path: Path, kind: type[_Document], *, signer: str | None, today: date | None = None) -> Model[_Document]:
    """Read a model.

    Args:
        path: the file.
        kind: which kind is expected.
        signer: the coordinator's Ed25519 public key as the charter pins it, 64 hexadecimal digits; None where no
            signature is asked for, in simulations alone.
        today: today's date (UTC) when an expired model is to be refused.

    Raises:
        DataError: unreadable, of another kind or version, changed since it was signed, signed by somebody else, or
            expired.
    """
    place = str(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError("is too large for a model", place=place, fix="export it again")
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise DataError("cannot be read", place=place, fix="check the path") from error
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last two: dtypes beyond numpy's
        raise DataError("is not a model file", place=place, fix="export it again") from error
    text = header.get(_HEADER, "") if len(header) == 1 else ""
    document = _parsed(text[_SIGNATURE:], kind, place)
    if signer is not None and not _is_signed(document, text[:_SIGNATURE], signer):
        raise DataError("is not signed by this federation's coordinator", place=place, fix="get the released file")
    if today is not None and today > document.expires:
        raise DataError(f"expired on {document.expires}", place=place, fix="run a new plan")
    try:
        return Model(document, arrays)
    except DataError as error:
        raise DataError(error.message, place=place, fix=error.fix) from error


def _parsed(text: str, kind: type[_Document], place: str) -> _Document:
    refusal = DataError("is not a model of that kind and version", place=place, fix="export it again")
    if len(text) > _MAX_HEADER:
        raise refusal
    try:
        document = kind.model_validate(json.loads(text))
        if document.to_bytes().decode() == text:
            return document
    except (ValueError, RecursionError):  # pydantic's included
        raise refusal from None
    raise refusal


def _is_signed(document: ModelDocument, signature: str, signer: str) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
        key.verify(bytes.fromhex(signature), _SIGNED + document.digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
