"""Released models: one file, the same bytes every time; refused by name when anything in it is not what was signed."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - what must be refused has to be made
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from cohortium.study import model as module
from cohortium.study.bundle import ReleaseRecord
from cohortium.study.errors import DataError, OutputError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import (
    AudienceShare,
    EncoderModel,
    FrameFact,
    LookalikeModel,
    Model,
    array_facts,
    load_model,
    save_model,
)
from cohortium.study.reach import Measured, RankerChoice, RankerQuality, ReachCurve

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
DIGEST = "sha256:" + "a" * 64
PLAN = {
    "schema": "cohortium.plan/1",
    "name": "small",
    "purpose": "research",
    "lawful_basis": "consent",
    "regions": ["EU"],
    "contract": DIGEST,
    "expires": "2030-06-30",
    "trust": "local",
    "epsilon": 1.0,
    "delta": 1e-6,
}
ENCODER_PLAN = EncoderPlan.model_validate({**PLAN, "study": "encoder"})
LOOKALIKE_PLAN = LookalikePlan.model_validate(
    {**PLAN, "study": "lookalike", "model": DIGEST, "lookalike": {"seed": "vip"}}
)
RECORD = ReleaseRecord(
    phase="training",
    step=3,
    attempt=1,
    kind="encoder-gradient",
    question=DIGEST,
    width=5,
    sigma="1048576",
    mu2=7,
    tv=1,
    institutions=3,
)


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def arrays() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return {"weights": rng.normal(size=(4, 3)), "centre": np.array([0.0, -0.0, 5e-324, 1e308]), "a": rng.normal(size=7)}


def encoder_model() -> Model[EncoderModel]:
    document = EncoderModel(
        plan=ENCODER_PLAN,
        run="r",
        institutions=3,
        customers=1234.5,
        features=("visits", "café"),
        frames={"features": FrameFact(people=1234.5, entry_std=0.1, mean_std=0.0)},
        arrays=array_facts(arrays()),
        releases=(RECORD,),
    )
    return Model(document, arrays())


def lookalike_model() -> Model[LookalikeModel]:
    share = Measured(value=0.5, low=0.25, high=0.75)
    document = LookalikeModel(
        plan=LOOKALIKE_PLAN,
        run="r",
        institutions=3,
        customers=10.0,
        features=("visits",),
        seeds=None,
        choice=RankerChoice(ranker="features"),
        quality=RankerQuality(ranker="features", auc=share, auc_noise_std=0.01),
        curve=ReachCurve(eligible=None, points=(), levels=()),
        level="balanced",
        profile=(AudienceShare(feature="visits", level=None, audience=share, eligible=share),),
        arrays=array_facts(arrays()),
        releases=(),
    )
    return Model(document, arrays())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.model"
    save_model(encoder_model(), KEY, path)
    return path


def load(path: Path, **changes: Any) -> Model[EncoderModel]:
    return load_model(path, EncoderModel, **{"signer": public(KEY), **changes})


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header's JSON and the bytes behind it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], payload: bytes | None = None) -> None:
    header, data = parts(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (data if payload is None else payload))


def refused(path: Path, match: str, **changes: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(path, **changes)
    assert caught.value.place == str(path)
    assert caught.value.fix


# --- round trip ------------------------------------------------------------------------------------------------------


def test_a_model_is_read_as_it_was_written(saved: Path) -> None:
    again, model = load(saved), encoder_model()
    assert again.document == model.document
    assert again.digest == model.digest
    for name, values in arrays().items():
        assert again.arrays[name].tobytes() == values.tobytes()
        assert again.arrays[name].dtype == np.float64
        assert again.arrays[name].shape == values.shape


def test_a_ranker_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_model(lookalike_model(), KEY, tmp_path / "m")
    again = load_model(tmp_path / "m", LookalikeModel, signer=public(KEY), today=date(2030, 6, 30))
    assert again.document == lookalike_model().document


@pytest.mark.parametrize("part", ["encoder", "ranker", "profile"])
def test_a_model_uses_nothing_that_its_plan_leaves_out(part: str) -> None:
    model: Model[Any] = encoder_model() if part == "encoder" else lookalike_model()
    document = model.document.to_json()
    document["plan"]["without"] = ["spend"]
    type(model.document).model_validate(document)
    if part == "profile":
        document["profile"][0]["feature"] = "spend"
    else:
        document["features"][0] = "spend"
    with pytest.raises(ValueError, match="'spend', which its plan leaves out"):
        type(model.document).model_validate(document)


def test_equal_models_are_equal_files_however_often_they_are_read_and_written(tmp_path: Path, saved: Path) -> None:
    files = {saved.read_bytes()}
    for number in range(12):
        path = tmp_path / f"again-{number}"
        save_model(load(saved), KEY, path)
        files.add(path.read_bytes())
    shuffled = Model(encoder_model().document, dict(reversed(arrays().items())))
    save_model(shuffled, KEY, tmp_path / "shuffled")
    files.add((tmp_path / "shuffled").read_bytes())
    assert len(files) == 1


def test_arrays_laid_out_otherwise_are_written_in_order(tmp_path: Path) -> None:
    transposed = {**arrays(), "weights": np.asfortranarray(arrays()["weights"])}
    path = tmp_path / "m"
    save_model(Model(encoder_model().document, transposed), KEY, path)
    assert (load(path).arrays["weights"] == arrays()["weights"]).all()


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save_model(encoder_model(), KEY, path)
    before = path.read_bytes()

    def full(_self: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        save_model(encoder_model(), OTHER, path)
    assert caught.value.place == str(path)
    assert path.read_bytes() == before
    with pytest.raises(OutputError):
        save_model(encoder_model(), KEY, tmp_path / "no such folder" / "m")


# --- signatures, kinds, dates ----------------------------------------------------------------------------------------


def test_a_model_signed_by_another_key_is_refused(saved: Path) -> None:
    refused(saved, "not signed", signer=public(OTHER))
    refused(saved, "not signed", signer="zz")
    refused(saved, "not signed", signer="")
    save_model(encoder_model(), OTHER, saved)
    refused(saved, "not signed")
    assert load(saved, signer=None).digest == encoder_model().digest


def test_the_signature_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    changed = encoder_model().document.model_copy(update={"customers": 1.0})
    other = tmp_path / "other"
    save_model(Model(changed, arrays()), KEY, other)
    stolen = parts(other)[0]["__metadata__"]["cohortium.model/1"][:128]

    def change(header: dict[str, Any]) -> None:
        text = header["__metadata__"]["cohortium.model/1"]
        header["__metadata__"]["cohortium.model/1"] = stolen + text[128:]

    rewrite(saved, change)
    refused(saved, "not signed")


def test_a_model_of_another_kind_is_refused(saved: Path) -> None:
    with pytest.raises(DataError, match="not a model of that kind") as caught:
        load_model(saved, LookalikeModel, signer=public(KEY))
    assert caught.value.place == str(saved)


def test_an_expired_model_is_refused_from_the_next_day_on(saved: Path) -> None:
    assert load(saved, today=date(2030, 6, 30)).document.expires == date(2030, 6, 30)
    refused(saved, "expired on 2030-06-30", today=date(2030, 7, 1))


# --- tampering -------------------------------------------------------------------------------------------------------


def edit_document(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        text = header["__metadata__"]["cohortium.model/1"]
        assert old in text
        header["__metadata__"]["cohortium.model/1"] = text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"customers":1234.5', '"customers":1234.6', "not signed"),
        ('"expires":"2030-06-30"', '"expires":"2099-06-30"', "not signed"),
        ('"customers":1234.5', '"customers":1234.50', "not a model of that kind"),
        ('"customers":1234.5', '"customers":NaN', "not a model of that kind"),
        ('"customers":1234.5', '"customers":1e999', "not a model of that kind"),
        ('"customers":1234.5', '"customers": 1234.5', "not a model of that kind"),
        ('"customers":1234.5', '"customers":1,"customers":1234.5', "not a model of that kind"),
        ('"customers":1234.5', '"customers":1234.5,"more":1', "not a model of that kind"),
        ('"run":"r"', '"run":"\\ud800"', "not a model of that kind"),
        ('"run":"r"', '"run":1', "not a model of that kind"),
        ("cohortium.encoder/1", "cohortium.encoder/2", "not a model of that kind"),
        ("caf\u00e9", "caf\\u00e9", "not a model of that kind"),
        ("{", "", "not a model of that kind"),
        ("{", "[" * 100_000, "not a model of that kind"),
    ],
    ids=range(14),
)
def test_a_changed_document_is_refused(saved: Path, old: str, new: str, match: str) -> None:
    rewrite(saved, edit_document(old, new))
    refused(saved, match)


def test_a_document_of_great_length_is_refused_before_it_is_parsed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_HEADER", 100)
    refused(saved, "not a model of that kind")


@pytest.mark.parametrize("entry", ["missing", "renamed", "more", "none"])
def test_a_header_without_the_one_entry_is_refused(saved: Path, entry: str) -> None:
    def change(header: dict[str, Any]) -> None:
        own = header["__metadata__"]
        match entry:
            case "missing":
                own.clear()
            case "renamed":
                own["document"] = own.pop("cohortium.model/1")
            case "more":
                own["more"] = ""
            case _:
                del header["__metadata__"]

    rewrite(saved, change)
    refused(saved, "not a model of that kind")


def test_a_changed_array_is_refused_by_its_name(saved: Path) -> None:
    header, payload = parts(saved)
    for name in arrays():
        start, _ = header[name]["data_offsets"]
        changed = bytearray(payload)
        changed[start] ^= 1
        rewrite(saved, lambda _header: None, bytes(changed))
        refused(saved, f"array '{name}'")
        rewrite(saved, lambda _header: None, payload)
    load(saved)


@pytest.mark.parametrize("dtype", ["I64", "U64", "BF16", "F16", "F32", "F8_E4M3", "F8_E5M2", "C64", "BOOL", "X9"])
def test_an_array_of_another_dtype_is_refused(saved: Path, dtype: str) -> None:
    def change(header: dict[str, Any]) -> None:
        size = {"I64": 8, "U64": 8, "BF16": 2, "F16": 2, "F32": 4, "C64": 8}.get(dtype, 1)
        for name in arrays():
            first, last = header[name]["data_offsets"]
            header[name] |= {"dtype": dtype, "shape": [(last - first) // size]}

    rewrite(saved, change)
    refused(saved, "not a model file|array '|not the one")


def test_an_array_of_another_shape_is_refused(saved: Path) -> None:
    rewrite(saved, lambda header: header["weights"].update(shape=[3, 4]))
    refused(saved, "array 'weights'")


def test_an_array_too_many_or_too_few_is_refused(saved: Path) -> None:
    good = saved.read_bytes()
    header, payload = parts(saved)
    end = len(payload)
    extra = {"dtype": "F64", "shape": [1], "data_offsets": [end, end + 8]}
    rewrite(saved, lambda header: header.update(more=extra), payload + bytes(8))
    refused(saved, "arrays are not those")
    saved.write_bytes(good)
    rewrite(saved, lambda header: header.update(more=header.pop("a")))
    refused(saved, "arrays are not those")
    last = max(arrays(), key=lambda name: header[name]["data_offsets"][1])
    first, _ = header[last]["data_offsets"]
    saved.write_bytes(good)
    rewrite(saved, lambda header: header.pop(last), payload[:first])
    refused(saved, "arrays are not those")


def test_an_array_that_is_not_finite_is_no_model() -> None:
    for bad in (np.nan, np.inf):
        broken = {**arrays(), "a": np.full(7, bad)}
        document = encoder_model().document.model_copy(update={"arrays": array_facts(broken)})
        with pytest.raises(DataError, match="array 'a'"):
            Model(document, broken)


# --- files that are no models ----------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused_wherever_it_ends(saved: Path) -> None:
    data = saved.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    for length in (0, 1, 7, 8, 9, 8 + size // 2, 8 + size, 9 + size, len(data) - 1):
        saved.write_bytes(data[:length])
        refused(saved, "not a model file")
    saved.write_bytes(data + b"\0")
    refused(saved, "not a model file")


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**40, 100_000_001])
def test_a_giant_header_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(struct.pack("<Q", size) + b"{" + b" " * 64)
    refused(saved, "not a model file")


def test_a_file_too_large_for_a_model_is_not_even_opened(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", saved.stat().st_size - 1)
    monkeypatch.setattr(module, "safe_open", None)
    refused(saved, "too large")


class Bomb:
    """What runs when somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a model file was unpickled",)


def test_nothing_in_a_file_is_ever_unpickled(saved: Path, tmp_path: Path) -> None:
    for protocol in range(6):
        saved.write_bytes(pickle.dumps(Bomb(), protocol))
        refused(saved, "not a model file")
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    saved.write_bytes((tmp_path / "bomb.npy").read_bytes())
    refused(saved, "not a model file")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "cannot be read")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "cannot be read|not a model file")
    refused(tmp_path / "folder" / "x" / "y", "cannot be read")
    (tmp_path / "text").write_text("hello, this is a text file", encoding="utf-8")
    refused(tmp_path / "text", "not a model file")
