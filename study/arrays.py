"""Arrays as they travel in Flower records: lazily encoded on the way out, strictly checked on the way in.

Apps put arrays into records with `to_array` (or a whole record with `to_record`) and take them out with `from_array`.
Both work the same on every engine. In one process the array itself changes hands, read-only and without a copy; only
where a runtime asks for bytes is the array encoded, as the `.npy` version 1.0 that `flwr.app.Array` uses itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, NoReturn, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from cohortium.study.errors import CohortiumError, Defect

__all__ = ["ArrayError", "from_array", "to_array", "to_record"]

Scalar = TypeVar("Scalar", bound=np.generic)

_ENCODING = "numpy.ndarray"
_WIRE_DTYPES = frozenset({"uint8", "int32", "uint32", "int64", "uint64", "float32", "float64"})


class ArrayError(CohortiumError):
    """An array that is not of the dtype, shape or encoding that was agreed. Never quotes what was received."""


class _HeldArray(Array):
    """A Flower array that holds a read-only ndarray and encodes it when, and only when, bytes are asked for."""

    def __init__(self, held: NDArray[Any]) -> None:
        held.flags.writeable = False
        self.__dict__.update(dtype=str(held.dtype), shape=held.shape, stype=_ENCODING, _held=held)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # Flower's is a plain field; this one is computed on demand
        return self._encoded().data

    def numpy(self) -> NDArray[Any]:
        """The array itself, read-only."""
        held: NDArray[Any] = self.__dict__["_held"]
        return held

    def deflate(self) -> bytes:
        """As a plain array deflates: the class name in the header tells the receiver how to rebuild it."""
        return self._encoded().deflate()

    def slice_array(self) -> Any:
        """As a plain array is sliced."""
        return self._encoded().slice_array()

    def _encoded(self) -> Array:
        encoded: Array | None = self.__dict__.get("_plain")
        if encoded is None:
            held = self.numpy()
            data = b"".join((_header(self.dtype, self.shape), held.tobytes()))
            encoded = self.__dict__["_plain"] = Array(self.dtype, self.shape, _ENCODING, data)
        return encoded

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dtype", "shape", "stype", "data"):
            raise AttributeError(f"{name} of an array in a record is read-only")
        super().__setattr__(name, value)

    def __copy__(self) -> _HeldArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _HeldArray:
        return self

    def __reduce__(self) -> tuple[Callable[[NDArray[Any]], Array], tuple[NDArray[Any]]]:
        return _HeldArray, (self.numpy(),)


def to_array(values: NDArray[Any]) -> Array:
    """An array for an `ArrayRecord`, without encoding or copying it now.

    Put it in by assignment, `record["name"] = to_array(values)`: `ArrayRecord({...})` would encode it at once.

    Args:
        values: of dtype uint8, int32, uint32, int64, uint64, float32 or float64 in native byte order. An array that
            owns its memory is handed over: it becomes read-only, and a later write to it raises. A view or an array
            that is not C-contiguous is copied instead.

    Raises:
        Defect: the dtype is not one that travels.
    """
    if str(values.dtype) not in _WIRE_DTYPES:
        raise Defect(f"arrays of dtype {values.dtype} do not travel")
    owned = type(values) is np.ndarray and values.flags.owndata and values.flags.c_contiguous
    return _HeldArray(values if owned else np.array(values, order="C", subok=False))


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """The named arrays as a Flower record, each by `to_array`."""
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = to_array(values)
    return record


def from_array(array: Array, dtype: type[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    """The array, if it is exactly what was agreed.

    Nothing received is parsed: the bytes must begin with the one header that the agreed dtype and shape have, and be
    as long as these say, so a hostile header can neither run code nor make this process allocate memory.

    Args:
        array: as taken from a record, in whatever process it was made.
        dtype: agreed element type, such as `np.int64`.
        shape: agreed shape.

    Returns:
        A read-only array of that dtype and shape, without a copy of the elements.

    Raises:
        ArrayError: the dtype, the shape or the encoding differs. The message names what was agreed and nothing else.
    """
    agreed, shape = np.dtype(dtype), tuple(int(length) for length in shape)
    if array.dtype != str(agreed):
        _refuse("dtype", agreed, shape)
    if tuple(array.shape) != shape:
        _refuse("shape", agreed, shape)
    if isinstance(array, _HeldArray):
        return array.numpy()
    data, header = array.data, _header(str(agreed), shape)
    if array.stype != _ENCODING or not data.startswith(header):
        _refuse("encoding", agreed, shape)
    if len(data) != len(header) + agreed.itemsize * math.prod(shape):
        _refuse("length", agreed, shape)
    values: NDArray[Scalar] = np.ndarray(shape, agreed, data, offset=len(header))
    return values


def _refuse(what: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NoReturn:
    raise ArrayError(f"array of a wrong {what}: {dtype} of shape {shape} was agreed")


@lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The `.npy` version 1.0 header of a C-contiguous array, as `numpy.save` writes it."""
    buffer = BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()
