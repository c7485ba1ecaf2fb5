"""Records parse exactly what their writers write, and refuse everything else without quoting it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import RefusedError
from cohortium.study.question import (
    ACCEPTED,
    DECLINED,
    Question,
    QuestionHeader,
    Release,
    digest_array,
    plain_reply,
    reply_kind,
)

settings.register_profile("codecs", derandomize=True, deadline=None)
settings.load_profile("codecs")

PLAN = "sha256:" + "a" * 64
HEADER: dict[str, Any] = {
    "format": "cohortium.question/1",
    "plan": PLAN,
    "run": "b" * 32,
    "phase": "marginals",
    "step": 0,
    "attempt": 1,
    "kind": "marginals",
    "scalars": {"features": ["a"]},
}

NAMES = st.text("abcdefgh", min_size=1, max_size=6)
# integral floats from 2**53 up would be read back as integers that canonical JSON does not have
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 2**53 or x != int(x))
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | FLOATS | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)
ARRAYS = st.dictionaries(NAMES, hnp.arrays(np.float64, SHAPES), max_size=3)
VECTORS = hnp.arrays(np.int64, st.integers(0, 20))


def question(arrays: Any = None, **changes: Any) -> Question:
    header = QuestionHeader(**{**HEADER, **changes})
    return Question(header, arrays if arrays is not None else {"axes": np.ones((1, 4))})


def on_the_wire(content: RecordDict) -> RecordDict:
    """As another process would receive it: every array encoded."""
    result = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
            result[name] = ArrayRecord(arrays)
        else:
            result[name] = record
    return result


def refused(content: RecordDict, parse: Any = Question.from_record) -> None:
    with pytest.raises(RefusedError, match=r"^malformed message"):
        parse(content)


# --- what is written is read -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(scalars=st.dictionaries(NAMES, JSON, max_size=3), arrays=ARRAYS, step=st.integers(0, 10_000))
@pytest.mark.parametrize("wire", [False, True])
def test_a_question_survives_the_wire(wire: bool, scalars: Any, arrays: Any, step: int) -> None:
    asked = question({name: values.copy() for name, values in arrays.items()}, scalars=scalars, step=step)
    content = asked.to_record()
    received = Question.from_record(on_the_wire(content) if wire else content)
    assert received.digest == asked.digest
    assert received.header == asked.header
    assert set(received.arrays) == set(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(received.arrays[name], values)


@settings(max_examples=40)
@given(VECTORS)
def test_a_release_survives_the_wire(vector: Any) -> None:
    release = Release(question().digest, vector.copy(), bytes(range(32)))
    for content in (release.to_record(), on_the_wire(release.to_record())):
        for width in (None, len(vector)):
            received = Release.from_record(content, width)
            assert (received.question, received.seal) == (release.question, release.seal)
            np.testing.assert_array_equal(received.vector, vector)


def test_the_digest_covers_everything() -> None:
    base = question()
    others = [
        question(plan="sha256:" + "c" * 64),
        question(run="c" * 32),
        question(phase="rfm"),
        question(step=1),
        question(attempt=2),
        question(kind="rfm-grid"),
        question(scalars={}),
        question({"axes": np.ones((1, 4)) * 2}),
        question({"axes": np.ones((4, 1))}),
        question({"axes": np.ones((1, 4)), "more": np.ones(1)}),
        question({"bxes": np.ones((1, 4))}),
        question({}),
    ]
    digests = {base.digest, *(other.digest for other in others)}
    assert len(digests) == len(others) + 1


def test_an_arrays_digest_covers_dtype_and_shape_and_not_layout() -> None:
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert digest_array(values) == digest_array(np.asfortranarray(values)) == digest_array(values.astype(">i8"))
    assert len({digest_array(v) for v in (values, values.T, values.ravel(), values.astype(np.float64))}) == 4


# --- hostile questions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"step": True},
        {"step": 0.0},
        {"step": "0"},
        {"step": -1},
        {"step": 10_001},
        {"attempt": 0},
        {"attempt": 101},
        {"attempt": None},
        {"plan": "sha256:" + "A" * 64},
        {"plan": "sha256:" + "a" * 63},
        {"plan": PLAN + "\n"},
        {"run": "b" * 31},
        {"run": "B" * 32},
        {"phase": ""},
        {"phase": "a" * 65},
        {"phase": "../up"},
        {"phase": "marginals\n"},
        {"kind": 3},
        {"format": "cohortium.question/2"},
        {"scalars": []},
        {"scalars": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_of_wrong_fields_is_refused(change: dict[str, Any]) -> None:
    content = question().to_record()
    text = json.dumps({**HEADER, **change}, sort_keys=True, separators=(",", ":"))
    content["question"] = ConfigRecord({"json": text})
    refused(content)


@pytest.mark.parametrize("name", [name for name in HEADER if name not in ("format", "scalars")])
def test_a_missing_field_is_refused(name: str) -> None:
    content = question().to_record()
    content["question"] = ConfigRecord({"json": json.dumps({k: v for k, v in HEADER.items() if k != name})})
    refused(content)


CANONICAL = canonical_bytes(HEADER).decode()


@pytest.mark.parametrize(
    "text",
    [
        CANONICAL + " ",
        " " + CANONICAL,
        CANONICAL.replace('"step":0', '"step":0,"step":0'),
        CANONICAL.replace('"step":0', '"step":00'),
        CANONICAL.replace('"step":0', '"step":-0'),
        CANONICAL.replace('["a"]', "[NaN]"),
        CANONICAL.replace('["a"]', "[Infinity]"),
        CANONICAL.replace('["a"]', "[1.0]"),
        CANONICAL.replace('["a"]', "[1e400]"),
        CANONICAL.replace('["a"]', f"[{2**60}]"),
        CANONICAL.replace('["a"]', f"[{'9' * 5000}]"),
        CANONICAL.replace('["a"]', '["\\u0061"]'),
        CANONICAL.replace('["a"]', '["\\ud800"]'),
        CANONICAL.replace('["a"]', "[" * 100_000 + "]" * 100_000),
        CANONICAL.replace('["a"]', "[" * 500 + "]" * 499),
        "",
        "null",
        "[]",
        "{}",
        json.dumps(HEADER, indent=1),
    ],
    ids=lambda text: text[-60:],
)
def test_a_header_that_is_not_canonical_is_refused(text: str) -> None:
    content = question().to_record()
    content["question"] = ConfigRecord({"json": text})
    refused(content)


def test_the_canonical_header_is_read() -> None:
    content = question().to_record()
    content["question"] = ConfigRecord({"json": CANONICAL})
    assert Question.from_record(content).digest == question().digest


@pytest.mark.parametrize("value", [b"bytes", 1, 1.5, ["{}"]])
def test_a_header_that_is_no_text_is_refused(value: Any) -> None:
    content = question().to_record()
    content["question"] = ConfigRecord({"json": value})
    refused(content)


@pytest.mark.parametrize("name", ["question", "shapes", "arrays"])
def test_records_are_complete_and_of_their_type(name: str) -> None:
    content = question().to_record()
    for wrong in (ConfigRecord({}), ConfigRecord({"json": 1, "more": 2}), ArrayRecord()):
        broken = RecordDict(dict(content))
        broken[name] = wrong
        refused(broken)
    missing = RecordDict({key: record for key, record in content.items() if key != name})
    refused(missing)
    more = RecordDict(dict(content))
    more["extra"] = ConfigRecord({})
    refused(more)


@pytest.mark.parametrize(
    "shape",
    [
        [2, 2],
        [4],
        [1, 4, 1],
        [1, 2, 2, 1],
        [-1, -4],
        [True, 4],
        [1.0, 4.0],
        ["1", "4"],
        [2**62, 2**62],
        [2**25],
        [0, 2**62],
        [2**24, 2],
    ],
    ids=str,
)
def test_a_wrong_or_absurd_shape_is_refused(shape: list[Any]) -> None:
    for content in (question().to_record(), on_the_wire(question().to_record())):
        try:
            content["shapes"] = ConfigRecord({"axes": shape})
        except TypeError:  # Flower itself refuses mixed lists
            continue
        refused(content)


def test_a_bool_shape_is_refused_where_its_integer_would_fit() -> None:
    content = question({"axes": np.ones((1, 1))}).to_record()
    content["shapes"] = ConfigRecord({"axes": [True, True]})
    refused(content)


@pytest.mark.parametrize("shape", [1, "ab", b"ab", 4.0])
def test_a_shape_that_is_no_list_is_refused(shape: Any) -> None:
    content = question().to_record()
    content["shapes"] = ConfigRecord({"axes": shape})
    refused(content)


def test_arrays_without_shapes_and_shapes_without_arrays_are_refused() -> None:
    content = question().to_record()
    content["shapes"] = ConfigRecord({})
    refused(content)
    content["shapes"] = ConfigRecord({"axes": [1, 4], "more": [1]})
    refused(content)


def encoded(values: Any) -> Array:
    return Array(np.asarray(values))


@pytest.mark.parametrize(
    "array",
    [
        encoded(np.ones((1, 4), np.float32)),
        encoded(np.ones((1, 4), np.int64)),
        encoded(np.ones((4, 1))),
        encoded(np.ones(4)),
        encoded(np.ones((1, 5))),
        Array("float64", (1, 4), "numpy.ndarray", encoded(np.ones((1, 4))).data + b"\0"),
        Array("float64", (1, 4), "numpy.ndarray", encoded(np.ones((1, 4))).data[:-1]),
        Array("float64", (1, 4), "numpy.ndarray", encoded(np.ones((1, 4), np.int64)).data),
        Array("float64", (1, 4), "numpy.ndarray", encoded(np.ones((1, 4))).data.replace(b"False", b"True ")),
        Array("float64", (1, 4), "pickle", encoded(np.ones((1, 4))).data),
        Array("object", (1, 4), "numpy.ndarray", encoded(np.ones((1, 4))).data),
        Array("float64", (1, 4), "numpy.ndarray", b""),
        Array("float64", (2**40, 4), "numpy.ndarray", b""),
    ],
)
def test_an_array_of_wrong_dtype_shape_or_bytes_is_refused(array: Array) -> None:
    content = on_the_wire(question().to_record())
    content["arrays"] = ArrayRecord({"axes": array})
    refused(content)


def test_a_refusal_quotes_nothing() -> None:
    content = question().to_record()
    content["question"] = ConfigRecord({"json": CANONICAL.replace("marginals", "SECRET")})
    with pytest.raises(RefusedError) as caught:
        Question.from_record(content)
    chain = [caught.value, caught.value.__cause__]
    assert all("SECRET" not in str(error) for error in chain)
    assert caught.value.__suppress_context__


# --- releases and replies --------------------------------------------------------------------------------------------


def release() -> RecordDict:
    return on_the_wire(Release("q", np.arange(3), bytes(32)).to_record())


@pytest.mark.parametrize(
    "header",
    [
        {"question": "q"},
        {"question": "q", "seal": bytes(31)},
        {"question": "q", "seal": "0" * 32},
        {"question": b"q", "seal": bytes(32)},
        {"question": "q", "seal": bytes(32), "n": 5},
    ],
    ids=str,
)
def test_a_release_of_a_wrong_header_is_refused(header: Any) -> None:
    content = release()
    content["release"] = ConfigRecord(header)
    refused(content, Release.from_record)


@pytest.mark.parametrize("values", [np.ones(3), np.ones(3, np.int32), np.ones((1, 3), np.int64), np.int64(3)], ids=str)
def test_a_release_of_a_wrong_vector_is_refused(values: Any) -> None:
    content = release()
    content["sum"] = ArrayRecord({"vector": encoded(values)})
    refused(content, Release.from_record)


def test_a_release_of_another_width_or_with_more_is_refused() -> None:
    refused(release(), lambda content: Release.from_record(content, 4))
    content = release()
    content["sum"] = ArrayRecord({"vector": encoded(np.arange(3)), "more": encoded(np.arange(3))})
    refused(content, Release.from_record)
    content = release()
    content["metrics"] = ConfigRecord({"n": 5})
    refused(content, Release.from_record)
    refused(content, reply_kind)


def test_there_are_three_replies() -> None:
    assert reply_kind(plain_reply("accepted")) == ACCEPTED
    assert reply_kind(plain_reply("declined")) == DECLINED
    assert reply_kind(release()) == "release"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"reply": ConfigRecord({"word": "declined: nobody under 18"})},
        {"reply": ConfigRecord({"word": "declined", "reason": "x"})},
        {"reply": ConfigRecord({"word": ["declined"]})},
        {"reply": ConfigRecord({})},
        {"reply": ArrayRecord()},
        {"reply": ConfigRecord({"word": "accepted"}), "metrics": ConfigRecord({})},
        {"release": ConfigRecord({})},
    ],
    ids=str,
)
def test_any_other_reply_is_refused(content: Any) -> None:
    refused(RecordDict(content), reply_kind)
