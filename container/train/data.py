"""Image folders as uint8 tensors, and an order of samples that depends on seed and epoch, never on the rank."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from container.images import ImageError, decode_image, image_extent
from container.model import ModelSignature, resize_image
from container.train.files import list_files
from container.train.shared_memory import loader_options

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"})
MEMORY_BYTES = 512 * 1024**2  # decoded images up to this are kept by every rank; beyond it they are decoded per step
MOST_UNREADABLE = 0.05  # of the files that are decoded at the start: more is no accident
SAMPLE = 500  # images looked at to decide size, channels and normalisation
TINY_PIXELS = 64  # below, the small network, and no mirroring: a mirrored digit is another sign
LARGEST_NATIVE_PIXELS = 256
SIZE_STEP = 16  # networks halve an image several times
DEFAULT_PIXELS = 224  # what torchvision's classifiers were designed for

Result = TypeVar("Result")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""uint8 [B, C, H, W], int64 [B] labels, int64 [B] sample indices."""


class DataError(Exception):
    """A channel does not hold what the built-in program trains on."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of one channel: `<class>/<file>`, in a fixed order."""

    root: Path
    files: tuple[str, ...]
    """Relative to `root`, sorted."""

    @property
    def class_names(self) -> list[str]:
        """Of each file."""
        return [name.split("/", 1)[0] for name in self.files]


def scan_folder(root: Path) -> ImageFolder:
    """The images below `root`; noise, hidden files and files outside of a class folder are left out."""
    paths = list_files(root, SUFFIXES) if root.is_dir() else []
    files = [path.relative_to(root).as_posix() for path in paths]
    return ImageFolder(root, tuple(sorted(name for name in files if "/" in name)))


def other_files(root: Path) -> Counter[str]:
    """Suffix -> how many files in class folders are left out because of it."""
    paths = list_files(root) if root.is_dir() else []
    suffixes = [path.suffix.lower() for path in paths if path.parent != root]
    return Counter(suffix or "no suffix" for suffix in suffixes if suffix not in SUFFIXES)


def describe_images(folder: ImageFolder, classes: Sequence[str], architecture: str, image_size: int) -> ModelSignature:
    """Decide input size, channels, normalisation and network from a sample of the images.

    Args:
        folder: has at least one image.
        classes: in the order of the network's outputs.
        architecture: "" to choose by size.
        image_size: 0 to choose by the images.

    Raises:
        DataError: none of them can be decoded.
    """
    step = max(1, len(folder.files) // SAMPLE)
    paths = [folder.root / name for name in folder.files[::step]]
    extents = [extent for path in paths if (extent := _read_if_whole(path, image_extent))]
    if not extents:
        _read(paths[0], image_extent)
    channels = max(channels for channels, _, _ in extents)
    sizes = Counter((height, width) for _, height, width in extents)
    height, width = next(iter(sizes))
    if image_size:
        height = width = image_size
    elif len(sizes) > 1 or max(height, width) > LARGEST_NATIVE_PIXELS:
        height = width = usual_pixels([max(extent[1:]) for extent in extents])
    decoded = [_read_if_whole(path, lambda encoded: decode_image(encoded, channels)) for path in paths]
    whole = [resize_image(image, height, width) for image in decoded if image is not None]
    if not whole:
        _read(paths[0], lambda encoded: decode_image(encoded, channels))
    pixels = torch.stack(whole)
    scaled = pixels.double() / 255
    return ModelSignature(
        architecture=architecture or ("convnet" if max(height, width) <= TINY_PIXELS else "resnet18"),
        classes=tuple(classes),
        channels=channels,
        height=height,
        width=width,
        mean=tuple(round(value, 6) for value in scaled.mean((0, 2, 3)).tolist()),
        std=tuple(round(max(value, 1e-3), 6) for value in scaled.std((0, 2, 3)).tolist()),
    )


def usual_pixels(longer_sides: list[int]) -> int:
    """Height and width for images that differ in size: near their median, and at most what classifiers are used to."""
    median = sorted(longer_sides)[len(longer_sides) // 2]
    return min(DEFAULT_PIXELS, math.ceil(median / SIZE_STEP) * SIZE_STEP)


def _read(path: Path, read: Callable[[bytes], Result]) -> Result:
    """What `read` makes of a file.

    Raises:
        DataError: it is no image; the file is named.
    """
    try:
        return read(path.read_bytes())
    except ImageError as error:
        raise DataError(f"{path} is not an image that can be decoded: {error}") from error


def _read_if_whole(path: Path, read: Callable[[bytes], Result]) -> Result | None:
    """What `read` makes of a file; None where it is no image that can be decoded."""
    try:
        return _read(path, read)
    except DataError:
        return None


class ImageData(Dataset[Batch]):
    """A channel's images with labels; in memory when they are few, else decoded when asked for."""

    def __init__(
        self, folder: ImageFolder, signature: ModelSignature, num_workers: int, ranks_per_host: int = 1
    ) -> None:
        """Read the channel. Of images that are kept in memory, those that cannot be decoded are left out.

        Args:
            folder: of the channel.
            signature: what its images become.
            num_workers: decoding threads at the start, or DataLoader processes per rank.
            ranks_per_host: share this host's memory.

        Raises:
            DataError: a class that the training channel does not have, or too many files that are no images.
        """
        unknown = set(folder.class_names) - set(signature.classes)
        if unknown:
            raise DataError(f"{folder.root} has classes that channel 'train' lacks: {', '.join(sorted(unknown)[:10])}")
        self.folder, self.signature = folder, signature
        self.num_workers, self.ranks_per_host = num_workers, ranks_per_host
        self._loader_options: dict[str, Any] | None = None
        self.images: torch.Tensor | None = None  # uint8 [N, C, H, W]
        if len(folder.files) * math.prod(signature.image_shape) <= MEMORY_BYTES and folder.files:
            self.images = self._read_all()
        places = {name: place for place, name in enumerate(signature.classes)}
        self.labels = torch.tensor([places[name] for name in self.folder.class_names], dtype=torch.int64)

    def _read_all(self) -> torch.Tensor:
        """Every image that can be decoded; from now on the folder has no others."""
        files = self.folder.files
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            images = list(pool.map(self._read_if_whole, range(len(files))))
        bad = [place for place, image in enumerate(images) if image is None]
        if len(bad) > MOST_UNREADABLE * len(files):
            self.read_image(bad[0])  # raises
        if bad:
            names, root = ", ".join(files[place] for place in bad[:5]), self.folder.root
            logger.warning("%s: %d of %d files are no images, and left out: %s", root, len(bad), len(files), names)
            whole = tuple(file for file, image in zip(files, images, strict=True) if image is not None)
            self.folder = dataclasses.replace(self.folder, files=whole)
        return torch.stack([image for image in images if image is not None])

    def _read_if_whole(self, index: int) -> torch.Tensor | None:
        try:
            return self.read_image(index)
        except DataError:
            return None

    def __len__(self) -> int:
        return len(self.folder.files)

    def read_image(self, index: int) -> torch.Tensor:  # uint8 [C, H, W]
        path = self.folder.root / self.folder.files[index]
        image = _read(path, lambda encoded: decode_image(encoded, self.signature.channels))
        return resize_image(image, self.signature.height, self.signature.width)

    def __getitem__(self, indices: torch.Tensor) -> Batch:  # a whole batch at once
        if self.images is not None:
            return self.images[indices], self.labels[indices], indices
        return torch.stack([self.read_image(int(i)) for i in indices]), self.labels[indices], indices

    def batches(self, indices: list[torch.Tensor]) -> Iterator[Batch]:
        """The batches of these sample indices, in this order."""
        if self.images is not None:
            return (self[chosen] for chosen in indices)
        if self._loader_options is None and indices:
            self._loader_options = loader_options([self[indices[0]]], 1, self.num_workers, _only, self.ranks_per_host)
        return iter(
            DataLoader(
                self,
                sampler=indices,  # each "sample" is a batch's indices
                batch_size=1,
                generator=torch.Generator(),  # else it would draw from torch's own, whose state a resumed job restores
                pin_memory=torch.cuda.is_available(),
                **(self._loader_options or {}),
            )
        )


def _only(samples: list[Batch]) -> Batch:
    return samples[0]


def training_batches(
    samples: int, batch_size: int, seed: int, epoch: int, share: tuple[int, int]
) -> list[torch.Tensor]:
    """The sample indices of every step of one epoch for one rank.

    All ranks together see the same batches whatever their number: an epoch is one permutation by seed and epoch, cut
    into global batches, each dealt out to the ranks in turn. An incomplete last batch is left to the next epoch.

    Args:
        samples: in the channel.
        batch_size: over all ranks.
        seed: of the job.
        epoch: from 0.
        share: this rank, and how many there are.

    Returns:
        int64 [batch_size / ranks] per step; shares differ by at most one.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order = torch.randperm(samples, generator=generator)
    rank, ranks = share
    steps = samples // batch_size
    return [order[step * batch_size : (step + 1) * batch_size][rank::ranks] for step in range(steps)]


def epoch_draws(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """float32 [samples, 6] uniform in 0..1: the randomness of each sample's augmentation in this epoch, on any rank."""
    generator = torch.Generator().manual_seed(_mix(seed, epoch) ^ 0x5EED)
    return torch.rand(samples, 6, generator=generator)


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch * 7_919 + 12_345) % 2**62


def augment(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Shift, turn and zoom each image a little; above 64 pixels zoom in more, and mirror half of them.

    Args:
        images: normalised float [B, C, H, W]; what comes in from outside is 0, the mean.
        draws: float [B, 6], uniform in 0..1, on the same device.

    Returns:
        float [B, C, H, W].
    """
    tiny = max(images.shape[-2:]) <= TINY_PIXELS
    centred = draws * 2 - 1  # [B, 6] in -1..1
    angle = centred[:, 0] * math.radians(12)
    zoom = 1 + centred[:, 1] * 0.12 if tiny else 1 - draws[:, 1] * 0.45  # below 1 is a cut-out
    stretch = 1 + centred[:, 2] * 0.08
    reach = torch.full_like(zoom, 0.12) if tiny else 1 - zoom
    mirror = torch.ones_like(zoom) if tiny else torch.where(draws[:, 5] < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [
        cosine * mirror,
        -sine * stretch,
        centred[:, 3] * reach,
        sine * mirror,
        cosine * stretch,
        centred[:, 4] * reach,
    ]
    affine = torch.stack(rows, dim=1).view(-1, 2, 3)  # [B, 2, 3]
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images.dtype), align_corners=False)
