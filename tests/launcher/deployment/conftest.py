"""An endpoint as the service describes it, and a model to serve."""

import tarfile
from datetime import UTC, datetime

import pytest

NOW = datetime.now(UTC)
ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"


@pytest.fixture
def model(tmp_path):
    """A `--set` that names an archive."""
    (tmp_path / "weights").write_text("w")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "weights", "weights")
    return "endpoint.model=./model.tar.gz"


@pytest.fixture
def described():
    """DescribeEndpoint's reply, with members of one's own."""

    def reply(**members):
        return {
            "EndpointName": "digits",
            "EndpointConfigName": "old",
            "EndpointStatus": "InService",
            "EndpointArn": ARN,
            "LastModifiedTime": NOW,
            "ProductionVariants": [{"VariantName": "main"}],
            **members,
        }

    return reply


@pytest.fixture
def yaml():
    return "name: digits\nrole: arn:aws:iam::123456789012:role/jobs\nendpoint: {instance_type: ml.m5.large}\n"
