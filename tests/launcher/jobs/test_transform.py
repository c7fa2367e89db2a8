"""A transform section becomes CreateModel and CreateTransformJob."""

import pytest

from launcher.errors import ConfigError
from launcher.jobs import transform
from launcher.jobs.api import Upload
from launcher.jobs.model import ServedModel
from launcher.validate import problems

MODEL = ServedModel("s3://bucket/model.tar.gz")
FULL = """
name: digits
transform:
  instance_type: ml.g5.xlarge
  instance_count: 2
  input: s3://data/in
  data_type: ManifestFile
  output: {s3_uri: "s3://out/here", kms_key: alias/key}
  content_type: text/csv
  accept: text/csv
  split: Line
  assemble: Line
  strategy: MultiRecord
  compression: Gzip
  max_concurrent: 4
  max_payload_mb: 6
  timeout: 20m
  max_retries: 1
  environment: {WORKERS: 2}
  input_filter: $[1:]
  output_filter: $[0]
  join: Input
"""


def test_every_option_at_once_makes_valid_requests(config, context, golden):
    calls = transform.calls(config(yaml=FULL), context, MODEL)
    assert [problems(call) for call in calls] == [[], []]
    golden("transform_full", [call.request for call in calls])


def test_a_local_directory_is_uploaded_under_its_own_name(config, context, tmp_path):
    made = config("transform.input=data/test")
    assert transform.uploads(made, context, tmp_path) == [
        Upload(tmp_path / "data/test", "s3://bucket/digits/transform-input/test/")
    ]
    _, call = transform.calls(made, context, MODEL)
    source = call.request["TransformInput"]["DataSource"]["S3DataSource"]
    assert source["S3Uri"] == "s3://bucket/digits/transform-input/test/"


def test_an_s3_input_is_not_uploaded(config, context, tmp_path):
    assert transform.uploads(config("transform.input=s3://a/b"), context, tmp_path) == []


def test_an_input_is_needed(config, context):
    with pytest.raises(ConfigError, match=r"transform\.input is not set; name a local directory or an S3 URI"):
        transform.calls(config(), context, MODEL)


def test_unset_options_are_left_to_the_image_and_the_service(config, context):
    _, call = transform.calls(config("transform.input=s3://a/b"), context, MODEL)
    assert not {"MaxConcurrentTransforms", "MaxPayloadInMB", "BatchStrategy"} & call.request.keys()
