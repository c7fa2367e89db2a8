import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.account.needs import planned_calls
from launcher.account.secrets import entropy, refuse_secrets, says_secret, secret_form, secrets_in, secrets_of
from launcher.config import Config
from launcher.dry_run import dry_context
from launcher.errors import ConfigError

# Put together here, so that this file itself passes a scan for secrets.
FORMS = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "an AWS access key id": "AKIA" + "QWERTYUIOPASDFGH",
    "a GitHub token": "ghp_" + "aB3" * 12,
    "a GitLab token": "glpat-" + "aB3xY" * 4,
    "a Hugging Face token": "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
    "an Anthropic API key": "sk-ant-" + "api03-abcdefghijklmnopqrst",
    "an OpenAI API key": "sk-proj-" + "aB3d" * 10,
    "a Slack token": "xoxb-" + "123456789012-abcdef",
    "a Slack webhook": "https://hooks.slack.com/" + "services/T00000000/B00000000/XXXXXXXX",
    "a Google API key": "AIza" + "aB3d5" * 7,
    "a Stripe key": "sk_live_" + "aB3d" * 6,
    "an npm token": "npm_" + "aB3d" * 9,
    "a PyPI token": "pypi-AgE" + "aB3d_" * 9,
    "a Databricks token": "dapi" + "0123456789abcdef" * 2,
    "an Azure storage key": "AccountName=x;AccountKey=" + "aB3d5+" * 12,
    "a JSON Web Token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N",
    "a presigned URL": "https://b.s3.amazonaws.com/k?X-Amz-Expires=60&X-Amz-Signature=" + "0a" * 32,
    "a URL with a password": "postgresql://train:" + "hunter22@db.example.com/metrics",
    "what looks like an AWS secret access key": "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzQ8pL2vNsa",
}
HARMLESS = {
    "epochs": "20",
    "learning_rate": "0.001",
    "model": "resnet18",
    "tokenizer": "bert-base-uncased-v2",
    "max_tokens": "4096",
    "max_token_length": "4096",
    "num_tokens": "1_000_000_000",
    "pad_token": "<|endoftext|>",
    "eos_token": "im_end_2024_v1",
    "special_tokens": '["<s>","</s>"]',
    "token_file": "run7/token-0042",
    "secret_name": "prod/wandb-key-1",
    "DB_PASSWORD_ARN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:db-Ab12Cd",
    "HF_TOKEN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:hf-Ab12Cd",
    "API_KEY": "${API_KEY}",
    "password": "",
    "secret": "none",
    "key": "0123456789abcdef0123456789abcdef",
    "key_dim": "64",
    "partition_keys": '["year","month"]',
    "git_commit": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "checkpoint": "s3://bucket/checkpoints/step-000120/",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "sha": "sha256:" + "0123456789abcdef" * 4,
    "class_names": "a,b,c,d,e,f,g,h,i,j",
    "SAGEMAKER_PROGRAM": "train.py",
    "layer_names": "BatchNorm2dLayerNormGroupNormInstanceNorm",
    "url": "https://user@example.com:8443/path",
    "proxy": "http://proxy.example.com:3128",
    "aws_example": "AKIAIOSFODNN7" + "EXAMPLE",
    "secret_access_example": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY",
    "author": "Ada.Lovelace-1815",
    "monkey_business": "aB3dE6gH9",
    "api_key": "your-api-key-123",
    "token_budget": "25000000x8",
    "skip": "sk-learn-2-logistic-regression-baseline-model-of-2026",
}


@pytest.mark.parametrize("what", FORMS)
def test_a_credential_is_known_by_its_form_whatever_its_name(what):
    (secret,) = secrets_of("Environment.NOTE", "NOTE", FORMS[what])
    assert secret.what == what


@pytest.mark.parametrize("name", HARMLESS)
def test_a_usual_setting_passes(name):
    assert secrets_of(name, name, HARMLESS[name]) == []


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "db.password", "hfToken", "PASSWD", "client_secret", "apikey", "auth_key", "DB_PASSPHRASE"],
)
def test_a_random_value_is_refused_under_a_name_that_says_secret(name):
    (secret,) = secrets_of(name, name, "kX9!" + "pQ2mZr7w")
    assert "under a name that says secret" in secret.what
    assert secrets_of("notes", "notes", "kX9!" + "pQ2mZr7w") == []


def test_a_hexadecimal_key_is_refused_under_its_name_and_passes_elsewhere():
    key = "0123456789abcdef" * 2 + "01234567"
    assert secrets_of("WANDB_API_KEY", "WANDB_API_KEY", key)
    assert not secrets_of("dataset_fingerprint", "dataset_fingerprint", key)


def test_the_message_says_where_and_what_and_how_to_do_it_and_never_the_value():
    config = Config.model_validate({"training": {"environment": {"WANDB_API_KEY": "kX9pQ2mZr7wT"}}})
    calls = planned_calls(config, dry_context(config), ["train"])
    with pytest.raises(ConfigError) as error:
        refuse_secrets(calls)
    text = str(error.value)
    assert "CreateTrainingJob.Environment.WANDB_API_KEY holds a value that looks random" in text
    assert "kX9p…, 12 characters" in text
    assert "kX9pQ" not in text
    assert "fix: store it in Secrets Manager, pass its ARN instead" in text


def test_hyperparameters_nested_in_the_file_are_searched_and_strings_in_json_quotes_too():
    values = {"hyperparameters": {"logger": {"token": "kX9pQ2mZr7wT"}, "note": '"' + FORMS["a GitHub token"] + '"'}}
    config = Config.model_validate({"training": values})
    found = secrets_in(planned_calls(config, dry_context(config), ["train"]))
    assert [secret.where for secret in found] == [
        "CreateTrainingJob.HyperParameters.logger.token",
        "CreateTrainingJob.HyperParameters.note",
    ]


def test_models_and_batch_jobs_are_searched_too():
    leak = {"DB_PASSWORD": "kX9pQ2mZr7wT"}
    values = {"transform": {"input": "s3://b/x", "environment": leak}, "endpoint": {"environment": leak}}
    config = Config.model_validate(values)
    found = secrets_in(planned_calls(config, dry_context(config), ["transform", "deploy"]))
    assert {secret.where.partition(".")[0] for secret in found} == {"CreateModel", "CreateTransformJob"}


def test_what_is_not_environment_or_hyperparameters_is_left_alone():
    config = Config.model_validate({"tags": {"password": "kX9pQ2mZr7wT"}})
    refuse_secrets(planned_calls(config, dry_context(config), ["train", "deploy"]))


@given(st.text(alphabet=string.ascii_lowercase + "_", max_size=30), st.text(max_size=200))
def test_any_text_is_judged_without_an_error(name, value):
    assert len(secrets_of("x", name, value)) <= 1


@given(st.text(alphabet=string.ascii_lowercase + " ,.", max_size=300))
def test_prose_is_never_a_secret(text):
    assert secret_form(text) is None


@given(st.sampled_from(["password", "api_key", "auth_token"]), st.floats() | st.integers())
def test_a_number_is_never_a_secret(name, value):
    assert secrets_of(name, name, str(value)) == []


def test_entropy_counts_bits_per_character():
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
    assert not says_secret("")
