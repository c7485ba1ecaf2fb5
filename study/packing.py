"""A message's records as one: Flower moves every record, array and part of an array by a request of its own.

A message of a secure sum has seven such parts, packed it has three. Both ends of a deployed federation pack; engines in
one process do not. Packing changes how records travel and nothing of what they say.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from cohortium.study.errors import RefusedError

__all__ = ["packed", "unpacked"]

_PACKED, _RECORDS = "packed", "records"


def packed(content: RecordDict) -> RecordDict:
    """The same records in one."""
    return RecordDict({_PACKED: ConfigRecord({_RECORDS: recorddict_to_proto(content).SerializeToString()})})


def unpacked(content: RecordDict) -> RecordDict:
    """The records that were packed; `RefusedError` for anything but one record with readable bytes."""
    record = content.get(_PACKED)
    if set(content) != {_PACKED} or not isinstance(record, ConfigRecord) or set(record) != {_RECORDS}:
        raise RefusedError("a message that is not packed")
    data = record[_RECORDS]
    if not isinstance(data, bytes):
        raise RefusedError("a packed message that holds no bytes")
    whole = ProtoRecordDict()
    try:
        whole.ParseFromString(data)
        return recorddict_from_proto(whole)
    except Exception as error:  # Flower's decoders raise whatever foreign bytes make them raise
        raise RefusedError("a packed message that cannot be read") from error
