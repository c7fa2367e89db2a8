"""The lock files: pinned with hashes, tied to no index, and each no larger than its purpose."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))


def pinned(lock: Path) -> dict[str, str]:
    """Package -> version; a package pinned differently by Python version has the last one."""
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==([^\s;]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_with_a_hash(lock):
    blocks = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)
    packages = [block for block in blocks if re.match(r"[a-z0-9]", block)]
    assert packages
    assert not [block.splitlines()[0] for block in packages if "==" not in block or "--hash=sha256:" not in block]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_lock_names_an_index(lock):
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock.read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_lock_pins_what_the_tests_run(lock):
    tested = pinned(REQUIREMENTS / "dev.txt")
    differing = {name for name, version in pinned(lock).items() if tested.get(name, version) != version}
    assert differing == set()


@pytest.mark.parametrize(
    ("lock", "absent"),
    [
        ("launcher", {"torch", "torchvision"}),
        ("serve", {"boto3", "botocore", "sagemaker", "sagemaker-training", "moto", "pydantic"}),
        ("train", {"sagemaker", "flask", "moto", "pydantic"}),
    ],
)
def test_a_role_installs_nothing_it_does_not_need(lock, absent):
    assert not absent & set(pinned(REQUIREMENTS / f"{lock}.txt"))
