"""Augmented manifests, as Ground Truth writes them: JSON Lines whose `-ref` attributes are S3 URIs of content.

In a Pipe channel the platform streams the attributes' values, one record each; in a File channel a job finds the lines
themselves, and the content in a channel beside them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from container.images import ImageError, decode_image
from container.model import resize_image
from container.train.files import ChannelError, list_files
from container.train.pipe import PipeChannel

REF_SUFFIX = "-ref"  # of an attribute whose value is the S3 URI of its content
METADATA_SUFFIX = "-metadata"  # of the attribute in which Ground Truth describes the label it is named after
MANIFEST_SUFFIXES = (".manifest", ".jsonl")

Sample = Mapping[str, Any]
"""Attribute name -> bytes of the content for a `-ref` attribute, the decoded JSON value for any other."""


class AugmentedManifest(IterableDataset[Any]):
    """A Pipe channel with S3DataType AugmentedManifestFile and RecordWrapperType RecordIO.

    channel = PipeChannel.from_environment(environment, "train")
    names = ("source-ref", "species", "species-metadata")
    samples = AugmentedManifest(channel, names, ImageLabel("source-ref", "species", classes=("cat", "dog")))
    for epoch in range(3):
        for images, labels in DataLoader(samples, batch_size=64, num_workers=1): ...
    """

    def __init__(
        self, channel: PipeChannel, attributes: Sequence[str], decode: Callable[[Sample], Any] | None = None
    ) -> None:
        """A manifest's samples from the records of its channel.

        Args:
            channel: made without `decode`.
            attributes: the channel's AttributeNames, in their order; the platform does not tell a container.
            decode: from a sample to an item.

        Raises:
            ChannelError: the channel has no RecordIO framing, so nothing says where an image ends and a label begins.
        """
        if not channel.records:
            raise ChannelError(
                f"channel {channel.path.name!r} needs RecordWrapperType RecordIO to be read as an augmented manifest"
            )
        self.channel, self.attributes, self.decode = channel, tuple(attributes), decode

    def __iter__(self) -> Iterator[Any]:
        sample: dict[str, Any] = {}
        number = 0
        for record in self.channel:
            name = self.attributes[len(sample)]
            sample[name] = record if name.endswith(REF_SUFFIX) else _decode_value(record, name, number)
            if len(sample) == len(self.attributes):
                yield self.decode(sample) if self.decode else sample
                sample, number = {}, number + 1
        if sample:
            raise ChannelError(
                f"channel {self.channel.path.name!r} ends after {list(sample)} of sample {number}: its AttributeNames "
                f"are not {list(self.attributes)}"
            )


def _decode_value(record: bytes, name: str, number: int) -> Any:
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise ChannelError(
            f"attribute {name!r} of sample {number} is no text but {record[:8]!r}...: the names are not in the order "
            "of the channel's AttributeNames"
        ) from None
    try:
        return json.loads(text)
    except ValueError:
        return text


class AugmentedManifestFile(Dataset[Any]):
    """A manifest that lies in a File channel, its content in another one.

    samples = AugmentedManifestFile(
        channel_directory(environment, "manifest"),
        s3_prefix="s3://bucket/images/", directory=channel_directory(environment, "images"),
        decode=ImageLabel("source-ref", "species"),
    )
    """

    def __init__(
        self, path: Path, s3_prefix: str, directory: Path, decode: Callable[[Sample], Any] | None = None
    ) -> None:
        """Read the lines; content is read when a sample is asked for.

        Args:
            path: the manifest, or a directory in which it is the only one.
            s3_prefix: of the channel that holds the content: its S3Uri.
            directory: where that channel lies.
            decode: from a sample to an item.

        Raises:
            ChannelError: no manifest, more than one, or not a line in it.
        """
        self.path = _find_manifest(path)
        self.s3_prefix, self.directory, self.decode = s3_prefix.rstrip("/") + "/", directory, decode
        self.lines = [line for line in self.path.read_bytes().splitlines() if line.strip()]
        if not self.lines:
            raise ChannelError(f"{self.path} is empty")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Any:
        """Sample `index`, decoded.

        Raises:
            ChannelError: the line is no JSON object, or its content is not in the channel.
        """
        try:
            line = dict(json.loads(self.lines[index]))
        except (ValueError, TypeError) as error:
            raise ChannelError(f"{self.path}, sample {index}: not a JSON object: {self.lines[index][:80]!r}") from error
        sample = {name: self._value(name, value, index) for name, value in line.items()}
        return self.decode(sample) if self.decode else sample

    def _value(self, name: str, value: Any, index: int) -> Any:
        if not name.endswith(REF_SUFFIX):
            return value
        where = f"{self.path}, sample {index}: {name!r} is {value!r}"
        if not str(value).startswith(self.s3_prefix):
            raise ChannelError(f"{where}, which is not below {self.s3_prefix}: give the S3Uri of the content's channel")
        file = self.directory / str(value).removeprefix(self.s3_prefix)
        try:
            return file.read_bytes()
        except OSError as error:
            raise ChannelError(f"{where}, and {file} cannot be read: {error.strerror}") from error


def _find_manifest(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = list_files(path, MANIFEST_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "no file that ends like one"
        raise ChannelError(f"{path} should hold one manifest ({', '.join(MANIFEST_SUFFIXES)}), and holds {names}")
    return found[0]


@dataclass(frozen=True)
class ImageLabel:
    """Decodes a sample of Ground Truth's image classification into an image and its class index."""

    image: str = "source-ref"
    label: str = "label"
    """Holds the class index; `<label>-metadata` the class name."""
    classes: tuple[str, ...] = ()
    """Where given, the index is the class name's place among these, whatever number the labelling job gave it."""
    channels: int = 3
    """1 (grey) or 3 (RGB)."""
    size: tuple[int, int] | None = None
    """Height and width to resize to; None leaves images as they are."""

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, int]:
        """uint8 [C, H, W] and the class index.

        Raises:
            ChannelError: no such attribute, an image that does not decode, or a label that is no known class.
        """
        for name in (self.image, self.label):
            if name not in sample:
                raise ChannelError(f"the sample has no attribute {name!r}, but {sorted(sample)}")
        try:
            image = decode_image(sample[self.image], self.channels)
        except ImageError as error:
            raise ChannelError(f"{self.image!r} is not an image that can be decoded: {error}") from error
        return (resize_image(image, *self.size) if self.size else image), self._class_index(sample)

    def _class_index(self, sample: Sample) -> int:
        value = sample[self.label]
        metadata = sample.get(self.label + METADATA_SUFFIX)
        name = metadata.get("class-name", value) if isinstance(metadata, Mapping) else value
        if isinstance(name, str) and self.classes:
            if name in self.classes:
                return self.classes.index(name)
            raise ChannelError(f"{self.label!r} is class {name!r}, which is none of {list(self.classes)}")
        if isinstance(value, int) and 0 <= value < (len(self.classes) or value + 1):
            return value
        raise ChannelError(f"{self.label!r} is {value!r}: a class index is needed, or give `classes` for class names")
