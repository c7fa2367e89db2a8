"""The GPU host image is chosen from the image's CUDA version and the instance family (contract 3.12)."""

import pytest

from launcher.jobs.hosts import inference_ami, transform_ami, warnings

NEWEST = "al2023-ami-sagemaker-inference-gpu-4-1"


@pytest.mark.parametrize(
    ("instance_type", "cuda", "ami"),
    [
        ("ml.g5.xlarge", "13.0", NEWEST),
        ("ml.g5.xlarge", "12.4", "al2-ami-sagemaker-inference-gpu-3-1"),
        ("ml.g5.xlarge", "12.1", "al2-ami-sagemaker-inference-gpu-2-1"),
        ("ml.g5.xlarge", "11.4", None),
        ("ml.g6.xlarge", "12.2", None),
        ("ml.p5en.48xlarge", "13.0", NEWEST),
        ("ml.g7e.2xlarge", "13.0", None),
        ("ml.m5.large", "13.0", None),
        ("ml.g5.xlarge", None, None),
    ],
)
def test_c145_the_endpoint_host_runs_the_images_cuda(instance_type, cuda, ami):
    choice = inference_ami(instance_type, cuda)
    assert (choice.ami, choice.warning) == (ami, None)


def test_c145_batch_hosts_end_at_cuda_12_and_say_so():
    choice = transform_ami("ml.g5.xlarge", "13.0")
    assert choice.ami == "al2-ami-sagemaker-batch-gpu-535"
    assert "CUDA 13.0 is newer than the 12.2" in choice.warning


def test_c145_a_host_without_a_better_choice_keeps_its_default():
    choice = transform_ami("ml.g6.xlarge", "13.0")
    assert choice.ami is None
    assert "forward-compatibility" in choice.warning


def test_c145_a_cuda_newer_than_every_host_is_a_warning():
    assert "13.0 that any host of ml.g5" in inference_ami("ml.g5.xlarge", "14.1").warning


def test_c145_the_configuration_is_warned_of_where_only_forward_compatibility_can_work(config):
    assert "CUDA 13.0 is newer" in warnings(config("transform.instance_type=ml.g5.xlarge"), "transform")[0]
    assert warnings(config("transform.ami=al2-ami-sagemaker-batch-gpu-470"), "transform") == []
    assert warnings(config(), "deploy") == []
    newer = config("images.serving.cuda='14.0'", "endpoint.variants=[{name: a, model: s3://b/1}]")
    assert len(warnings(newer, "deploy")) == 1
    assert warnings(config("endpoint.serverless=true"), "deploy") == []
    assert warnings(config(), "train") == []
