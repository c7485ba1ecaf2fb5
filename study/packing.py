"""A message's records as one: Flower moves every record, array and part of an array by a request of its own.

A message of a secure sum has seven such parts, packed it has three. Both ends of a deployed federation pack; engines in
one process do not. Packing changes how records travel and nothing of what they say.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from cohortium.study.errors import RefusedError

__all__ = ["PARTS", "packed", "unpacked", "whole_message"]

PARTS = 3
"""Of a packed message."""

_PACKED, _RECORDS = "packed", "records"
_KINDS = ["ConfigRecord", "Message", "RecordDict"]  # no array, whose parts could repeat for ever


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


def whole_message(identity: str, contents: Mapping[str, bytes]) -> Message:
    """A packed message, put together from its parts by their ids; `RefusedError` for anything else, whatever it is."""
    try:
        if sorted(map(get_object_type_from_object_content, contents.values())) != _KINDS:
            raise RefusedError("a message that is not packed")
        whole = inflate_object_from_contents(identity, dict(contents))
    except Exception as error:  # Flower's decoders raise whatever foreign bytes make them raise
        raise RefusedError("a message whose content cannot be read") from error
    if not isinstance(whole, Message):
        raise RefusedError("a message that is not what its name says")
    return whole
