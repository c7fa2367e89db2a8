"""`transform`: a batch transform job."""

from typing import Literal

from pydantic import Field, model_validator

from launcher.config.values import InstanceType, Output, Seconds, Section, Text


class Transform(Section):
    """A batch transform job."""

    instance_type: InstanceType = "ml.g5.xlarge"
    instance_count: int = Field(default=1, ge=1, le=100)
    model: str | None = None
    """A training job's name, an S3 URI or a local model.tar.gz; default: the newest training job."""
    input: str | None = None
    """A local directory (it is uploaded) or an S3 URI."""
    data_type: Literal["S3Prefix", "ManifestFile"] = "S3Prefix"
    output: Output = Output()
    content_type: str | None = None
    accept: str | None = None
    split: Literal["None", "Line", "RecordIO", "TFRecord"] = "None"
    strategy: Literal["MultiRecord", "SingleRecord"] | None = None
    assemble: Literal["None", "Line"] = "Line"
    compression: Literal["None", "Gzip"] = "None"
    max_concurrent: int | None = Field(default=None, ge=0)
    max_payload_mb: int | None = Field(default=None, ge=0, le=100)
    timeout: Seconds | None = Field(default=None, ge=1, le=3600)
    max_retries: int | None = Field(default=None, ge=0, le=3)
    environment: dict[str, Text] = Field(default={}, max_length=16)
    input_filter: str | None = Field(default=None, max_length=63)
    output_filter: str | None = Field(default=None, max_length=63)
    join: Literal["None", "Input"] | None = None
    volume_kms_key: str | None = None
    ami: str | None = None
    """TransformAmiVersion; default: chosen from the image's CUDA version."""

    @model_validator(mode="after")
    def _payload_fits(self) -> "Transform":
        if (self.max_concurrent or 0) * (self.max_payload_mb or 0) > 100:
            raise ValueError(
                f"max_concurrent={self.max_concurrent} times max_payload_mb={self.max_payload_mb} is over 100; "
                "lower one"
            )
        if self.join == "Input" and (self.split, self.assemble) != ("Line", "Line") and self.split != "None":
            raise ValueError("join: Input needs split: Line and assemble: Line")
        return self
