"""RecordIO as a training channel carries it: `container.recordio`, with errors that speak of the channel."""

from collections.abc import Iterator
from typing import BinaryIO

from container import recordio
from container.train.files import ChannelError


class RecordIOError(ChannelError):
    """The bytes are not RecordIO, or they end within a record."""


def read_records(stream: BinaryIO) -> Iterator[bytes]:
    """The payloads of a RecordIO stream, one at a time, each handed out before the next one is waited for.

    Args:
        stream: buffered: `read(n)` gives fewer than n bytes only at the end.

    Raises:
        RecordIOError: a wrong magic number, a part without its beginning or end, or an end inside a record.
    """
    try:
        yield from recordio.read_records(stream)
    except recordio.NoRecordIO as error:
        raise RecordIOError(f"{error}: was the channel made with RecordWrapperType RecordIO?") from None
    except recordio.RecordIOError as error:
        raise RecordIOError(f"{error}: its writer failed or was stopped, or the data are damaged") from None
