"""`images`: the two images, and the registry they are pushed to."""

from pathlib import Path

from pydantic import Field

from launcher.config.values import Section, Text


class Image(Section):
    """Where an image comes from, and where it goes."""

    repository: str
    """Name in the registry, such as `slipway-train`."""
    tag: str = "latest"
    uri: str | None = None
    """A complete reference (`registry/repository:tag` or `…@sha256:…`) that is used as it stands."""
    dockerfile: Path
    context: Path = Path(".")
    base_image: str | None = None
    """Build argument BASE_IMAGE; default: the Dockerfile's own."""
    build_args: dict[str, Text] = {}
    platform: str = "linux/amd64"
    keep: int = Field(default=20, ge=1)
    """How many pushed images the repository's lifecycle policy keeps."""
    max_size_gb: float = Field(default=15, gt=0)
    """Budget for `image check`, uncompressed."""
    cuda: str | None = "13.0"
    """CUDA version inside; null for a CPU image. Decides `InferenceAmiVersion`."""


class TrainingImage(Image):
    """The training image's defaults."""

    repository: str = "slipway-train"
    dockerfile: Path = Path("Dockerfile.train")


class ServingImage(Image):
    """The serving image's defaults."""

    repository: str = "slipway-serve"
    dockerfile: Path = Path("Dockerfile.serve")


class Images(Section):
    """The two images, and the registry they are pushed to."""

    registry: str | None = None
    """Registry host; default: this account's ECR. An empty text means the local engine's own images."""
    network: str | None = None
    """Network of a build's RUN steps, such as `host`."""
    buildkit: bool = False
    """Build with the docker client and BuildKit, for Dockerfiles with cache mounts."""
    cache: bool = False
    """Pull what was pushed last before building: for machines that start empty, such as CodeBuild's."""
    codebuild_project: str | None = None
    """CodeBuild project that `build --remote` starts; it runs buildspec.yml."""
    min_free_gb: float = Field(default=5, ge=0)
    """Disk that must be free before a build."""
    training: TrainingImage = TrainingImage()
    serving: ServingImage = ServingImage()
