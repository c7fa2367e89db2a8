"""Finds secrets where everybody can read them: environment and hyperparameters stay in a job's description for good.

A value is refused when its form is a credential's (a key id, a private key, a vendor's token), or when its name says
secret and the value looks drawn at random. References (`arn:aws:secretsmanager:…`, a path, a variable) are what belongs
there, and pass.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import ConfigError
from launcher.jobs.api import ApiCall

# What a credential looks like, by its issuer's own documentation. Order matters: the first match names it.
PATTERNS: dict[str, re.Pattern[str]] = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key id": re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "an Anthropic API key": re.compile(r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    "an OpenAI API key": re.compile(r"\bsk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{32,}|[A-Za-z0-9]{32,})"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Slack webhook": re.compile(r"https://hooks\.slack\.com/services/\w+/\w+/\w+"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "a Stripe key": re.compile(r"\b[rs]k_live_[A-Za-z0-9]{16,}"),
    "an npm token": re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"),
    "a PyPI token": re.compile(r"\bpypi-AgE[A-Za-z0-9_-]{40,}"),
    "a Databricks token": re.compile(r"\bdapi[0-9a-f]{32}\b"),
    "an Azure storage key": re.compile(r"\bAccountKey=[A-Za-z0-9+/]{60,}"),
    "a JSON Web Token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "a presigned URL": re.compile(r"[?&]X-Amz-Signature=[0-9a-f]{64}"),
    "a URL with a password": re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]+:(?!\$\{|\*+@|password@)[^/\s:@]{3,}@"),
}
AWS_EXAMPLE = "EXAMPLE"  # AWS's documentation keys end so; they open nothing
SECRET_WORDS = frozenset(["credential", "credentials", "passphrase", "passwd", "password", "pwd", "secret", "token"])
KEY_WORDS = frozenset({"api", "access", "private", "auth", "encryption", "signing", "account"})  # … followed by "key"
# A name that ends so says where the secret is, not what it is.
REFERENCE_ENDINGS = frozenset(
    {"arn", "file", "id", "length", "name", "path", "type", "uri", "url", "ids", "count", "size"}
)
# Words beside "token" with which it is a model's vocabulary.
VOCABULARY = frozenset(
    [
        "batch",
        "bos",
        "budget",
        "class",
        "cls",
        "drop",
        "end",
        "eos",
        "image",
        "mask",
        "max",
        "min",
        "new",
        "num",
        "pad",
        "per",
        "sep",
        "special",
        "start",
        "stop",
        "unk",
        "vocab",
    ]
)
REFERENCE = re.compile(r"arn:|s3://|https?://|file:|ssm:|vault:|secretsmanager:|[./~]|\$|\{\{|<|\[|%", re.IGNORECASE)
PLACEHOLDER = re.compile(r"(your|my|some|change|replace|todo|dummy|test)[\W_].*|x+|\*+", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
SHORTEST = 8  # characters; below that a value is a word or a number
LOWEST_ENTROPY = 2.75  # bits per character; 3.0 for eight different ones, 2.6 for "password1"
AWS_SECRET_KEY = re.compile(r"[A-Za-z0-9/+]{40}")
AWS_SECRET_ENTROPY = 4.2  # bits; forty hexadecimal digits (a commit) have at most 4
SHOWN = 4  # characters of a secret that a message repeats


@dataclass(frozen=True)
class Secret:
    """One value that should not be where it is."""

    where: str
    """Dotted place, such as `CreateTrainingJob.Environment.WANDB_API_KEY`."""
    what: str
    hint: str
    """Its first characters and its length; never the value."""

    def __str__(self) -> str:
        return f"{self.where} holds {self.what} ({self.hint})"


def secrets_in(calls: Iterable[ApiCall]) -> list[Secret]:
    """Secrets in the environment and the hyperparameters of requests."""
    return [
        secret
        for call in calls
        for where, name, value in _texts(call.request, call.operation, inside=False)
        for secret in secrets_of(where, name, value)
    ]


def refuse_secrets(calls: Iterable[ApiCall]) -> None:
    """Stop before a secret is written where everybody with a Describe permission reads it.

    Raises:
        ConfigError: where it is, what it looks like, and how to hand it over instead.
    """
    found = secrets_in(calls)
    if found:
        raise ConfigError(
            "\n".join(map(str, found)) + "\nfix: store it in Secrets Manager, pass its ARN instead, let the execution "
            "role read it (secretsmanager:GetSecretValue), and change the secret if it has been sent before"
        )


def secrets_of(where: str, name: str, value: str) -> list[Secret]:
    """At most one secret in one named value.

    Args:
        where: its place, for the message.
        name: of the variable or hyperparameter; dotted names count by their last part.
        value: its text.
    """
    value = value.strip().strip('"')
    found = secret_form(value)
    if not found and says_secret(name) and looks_random(value):
        found = f"a value that looks random under a name that says secret ({name!r})"
    return [Secret(where, found, f"{value[:SHOWN]}…, {len(value)} characters")] if found else []


def secret_form(text: str) -> str | None:
    """What kind of credential a text holds, by its form; None for anything else. Good for files and layers, too."""
    for what, pattern in PATTERNS.items():
        match = pattern.search(text)
        if match and not match[0].endswith(AWS_EXAMPLE):
            return what
    classes = (r"[a-z]", r"[A-Z]", r"[0-9]")
    if AWS_SECRET_KEY.fullmatch(text) and all(re.search(item, text) for item in classes):
        example = "EXAMPLE" in text  # as in AWS's documentation
        return (
            "what looks like an AWS secret access key" if entropy(text) > AWS_SECRET_ENTROPY and not example else None
        )
    return None


def says_secret(name: str) -> bool:
    """Whether a name announces a secret: `WANDB_API_KEY`, `db.password`, `hfToken`; not `max_tokens`."""
    words = words_of(name)
    if not words or words[-1] in REFERENCE_ENDINGS:
        return False
    if any(first in KEY_WORDS and second == "key" for first, second in zip(words, words[1:], strict=False)):
        return True
    if "apikey" in words:
        return True
    said = SECRET_WORDS.intersection(words)
    return bool(said) and not (said == {"token"} and VOCABULARY.intersection(words))


def words_of(name: str) -> list[str]:
    """The words of the last part of a dotted name, in lower case; camelCase counts as two."""
    last = name.rpartition(".")[2]
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", last)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", apart) if word]


def looks_random(value: str) -> bool:
    """Whether a value could be a key or a password: long enough, of mixed characters, and no reference to one."""
    if len(value) < SHORTEST or re.search(r"\s", value) or REFERENCE.match(value):
        return False
    if AWS_EXAMPLE in value or PLACEHOLDER.fullmatch(value) or NUMBER.fullmatch(value):
        return False
    letters, others = re.search(r"[A-Za-z]", value), re.search(r"[^A-Za-z_-]", value)
    return bool(letters and others) and entropy(value) >= LOWEST_ENTROPY


def entropy(text: str) -> float:
    """Shannon entropy in bits per character."""
    counts = Counter(text)
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())


def _texts(value: Any, where: str, inside: bool, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Place, name and text of every value below an Environment or HyperParameters map."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = inside or key in {"Environment", "HyperParameters"}
            yield from _texts(item, f"{where}.{key}", here, key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}[{index}]", inside, name)
    elif inside and isinstance(value, str):
        yield where, name, value
