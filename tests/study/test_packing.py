"""Packing: what was packed comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from cohortium.study.arrays import from_array, to_array
from cohortium.study.errors import RefusedError
from cohortium.study.packing import packed, unpacked


def content(values: list[int], said: dict[str, int | str | bytes | bool]) -> RecordDict:
    arrays = ArrayRecord()
    arrays["v"] = to_array(np.array(values, dtype=np.int64))
    return RecordDict({"release": arrays, "said": ConfigRecord(dict(said))})


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**62), 2**62) | st.text() | st.binary() | st.booleans()),
)
def test_records_come_back_as_they_were(values: list[int], said: dict[str, int | str | bytes | bool]) -> None:
    back = unpacked(packed(content(values, said)))
    assert set(back) == {"release", "said"}
    assert dict(back["said"]) == said
    assert from_array(back["release"]["v"], np.int64, (len(values),)).tolist() == values  # type: ignore[index]


def test_a_message_is_one_record() -> None:
    assert list(packed(content([1], {"a": 1}))) == ["packed"]


@pytest.mark.parametrize(
    "foreign",
    [
        RecordDict(),
        RecordDict({"packed": ConfigRecord({"records": "text"})}),
        RecordDict({"packed": ConfigRecord({"records": b"\xff\xff\xff"})}),
        RecordDict({"packed": ConfigRecord({"records": b"", "more": 1})}),
        RecordDict({"packed": ConfigRecord({"other": b""})}),
        RecordDict({"packed": MetricRecord({"records": 1})}),
        RecordDict({"packed": ConfigRecord({"records": b""}), "more": ConfigRecord()}),
        RecordDict({"other": ConfigRecord({"records": b""})}),
    ],
)
def test_anything_else_is_refused(foreign: RecordDict) -> None:
    with pytest.raises(RefusedError, match="packed"):
        unpacked(foreign)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_records_or_refused(data: bytes) -> None:
    with suppress(RefusedError):
        assert isinstance(unpacked(RecordDict({"packed": ConfigRecord({"records": data})})), RecordDict)
