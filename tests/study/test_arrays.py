"""Arrays in records: no copy in one process, Flower's bytes on the way out, only the agreed on the way in."""

from __future__ import annotations

import copy
import math
import pickle  # noqa: TID251 - what Ray does between processes; nothing of ours reads pickles
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cohortium.study.arrays import ArrayError, from_array, to_array, to_record
from cohortium.study.errors import CohortiumError, Defect

WIRE_DTYPES = [np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]

any_array = st.sampled_from(WIRE_DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


def plain(values: np.ndarray[Any, Any]) -> Array:
    """The array as Flower itself encodes it, as it arrives from a network."""
    return Array(np.ascontiguousarray(values).reshape(values.shape))


def message_with(record: ArrayRecord) -> Message:
    metadata = Metadata(7, "id", 1, 2, "", "group", 1.0, 10.0, "query.x")
    return make_message(metadata=metadata, content=RecordDict({"r": record, "c": ConfigRecord({"k": 1})}))


def over_the_wire(message: Message) -> Message:
    return message_from_proto(message_to_proto(message))


def over_the_object_store(message: Message) -> Message:
    contents = {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}
    inflated = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(inflated, Message)
    return inflated


def same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@given(any_array)
def test_round_trip_within_a_process(values: np.ndarray[Any, Any]) -> None:
    expected = values.copy()
    assert same_bits(from_array(to_array(values), values.dtype.type, values.shape), expected)


@given(any_array)
def test_encodes_exactly_as_flower_does(values: np.ndarray[Any, Any]) -> None:
    ours, theirs = to_array(values), plain(values)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    assert ours.object_id == theirs.object_id


@pytest.mark.parametrize("transport", [over_the_wire, over_the_object_store])
@given(values=any_array)
def test_round_trip_through_flowers_serialisation(transport: Any, values: np.ndarray[Any, Any]) -> None:
    received = transport(message_with(to_record({"v": values})))
    array = received.content.array_records["r"]["v"]
    assert type(array) is Array
    assert same_bits(from_array(array, values.dtype.type, values.shape), values)


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_extreme_values_keep_every_bit(dtype: type[np.generic]) -> None:
    limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    values = np.array([limits.min, limits.max], dtype=dtype)
    received = over_the_wire(message_with(to_record({"v": values})))
    assert same_bits(from_array(received.content.array_records["r"]["v"], dtype, (2,)), values)


def test_an_owned_array_is_handed_over_without_a_copy() -> None:
    values = np.arange(6, dtype=np.uint64).reshape(2, 3).copy()
    record = to_record({"v": values})
    assert from_array(record["v"], np.uint64, (2, 3)) is values
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 9


def test_nothing_is_encoded_until_bytes_are_asked_for() -> None:
    array = to_array(np.arange(3))
    assert "_plain" not in array.__dict__
    assert array.data is array.data
    assert "_plain" in array.__dict__


@pytest.mark.parametrize("view", [np.s_[:, 1:], np.s_[::2], np.s_[:]])
def test_a_view_is_copied_and_the_original_stays_writable(view: Any) -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4).copy()
    part = values[view]
    array = to_array(part)
    expected = part.copy()
    values[:] = -1
    assert same_bits(from_array(array, np.int64, part.shape), expected)


def test_a_fortran_array_arrives_in_c_order() -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    array = to_array(values)
    assert same_bits(
        from_array(
            over_the_wire(message_with(to_record({"v": values}))).content.array_records["r"]["v"], np.float64, (2, 3)
        ),
        np.ascontiguousarray(values),
    )
    assert array.data == plain(values).data


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([None]), np.array([True]), np.zeros(2, dtype=">i8"),
                                    np.zeros(2, dtype=np.complex128)])  # fmt: skip
def test_other_dtypes_do_not_travel(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(Defect, match="do not travel"):
        to_array(values)


def test_what_comes_out_is_read_only_on_both_ways() -> None:
    for array in (to_array(np.arange(3)), plain(np.arange(3))):
        assert not from_array(array, np.int64, (3,)).flags.writeable


def test_an_array_in_a_record_cannot_be_changed() -> None:
    array = to_array(np.arange(3))
    for name in ("dtype", "shape", "stype", "data"):
        with pytest.raises(AttributeError):
            setattr(array, name, "other")


def test_copies_share_the_array_and_pickles_rebuild_it() -> None:
    array = to_array(np.arange(3))
    assert copy.copy(array) is array
    assert copy.deepcopy(array) is array
    rebuilt = pickle.loads(pickle.dumps(array, protocol=5))  # noqa: S301 - our own bytes
    assert same_bits(from_array(rebuilt, np.int64, (3,)), np.arange(3))
    assert not rebuilt.numpy().flags.writeable


@pytest.mark.parametrize("make", [to_array, plain])
@pytest.mark.parametrize(("dtype", "shape"), [(np.int64, (2,)), (np.int64, (3, 1)), (np.int64, ()),
                                              (np.uint64, (3,)), (np.float64, (3,)), (np.int32, (6,))])  # fmt: skip
def test_another_dtype_or_shape_is_refused(make: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    with pytest.raises(ArrayError):
        from_array(make(np.array([77, 77, 77])), dtype, shape)


def test_a_refusal_names_what_was_agreed_and_quotes_nothing() -> None:
    with pytest.raises(CohortiumError) as caught:
        from_array(plain(np.full(31, 424242)), np.float64, (5,))
    assert "float64 of shape (5,)" in str(caught.value)
    assert "424242" not in str(caught.value)
    assert "31" not in str(caught.value)


def test_a_shape_of_numpy_integers_is_the_same_shape() -> None:
    shape = (np.int64(2), np.int64(17))
    values = np.zeros((2, 17))
    assert from_array(plain(values), np.float64, shape).shape == (2, 17)  # type: ignore[arg-type]
    assert from_array(plain(values), np.float64, (2, 17)).shape == (2, 17)


@given(values=any_array, data=st.data())
def test_bytes_that_were_cut_padded_or_replaced_are_refused(values: np.ndarray[Any, Any], data: st.DataObject) -> None:
    good = plain(values).data
    bad = data.draw(st.one_of(st.binary(max_size=200), st.integers(0, len(good) - 1).map(lambda end: good[:end]),
                              st.binary(min_size=1, max_size=9).map(lambda more: good + more)))  # fmt: skip
    with pytest.raises(ArrayError):
        from_array(Array(str(values.dtype), values.shape, "numpy.ndarray", bad), values.dtype.type, values.shape)


@given(values=any_array, data=st.data())
def test_any_changed_header_byte_is_refused(values: np.ndarray[Any, Any], data: st.DataObject) -> None:
    good = bytearray(plain(values).data)
    position = data.draw(st.integers(0, len(good) - values.nbytes - 1))
    good[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArrayError):
        from_array(
            Array(str(values.dtype), values.shape, "numpy.ndarray", bytes(good)), values.dtype.type, values.shape
        )


def test_a_header_that_promises_terabytes_allocates_nothing() -> None:
    huge = (2**40,)
    small = plain(np.zeros(3)).data
    with pytest.raises(ArrayError):
        from_array(Array("float64", huge, "numpy.ndarray", small), np.float64, huge)
    with pytest.raises(ArrayError):
        from_array(Array("float64", (3,), "numpy.ndarray", small.replace(b"(3,)", b"(9,)")), np.float64, (3,))
    assert math.prod(huge) > len(small)


def test_a_pickle_is_refused_and_not_loaded() -> None:
    bomb = pickle.dumps(pytest.fail)
    with pytest.raises(ArrayError):
        from_array(Array("float64", (3,), "numpy.ndarray", bomb), np.float64, (3,))


def test_another_encoding_is_refused() -> None:
    with pytest.raises(ArrayError, match="encoding"):
        from_array(Array("float64", (3,), "torch", plain(np.zeros(3)).data), np.float64, (3,))
