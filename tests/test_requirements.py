"""The lock files: pinned with hashes, tied to no index, and each no larger than its purpose."""

import re
import subprocess
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


@pytest.mark.parametrize(
    ("dockerfile", "lock"), [("serve", "torch"), ("serve", "serve"), ("train", "torch"), ("train", "train")]
)
def test_an_image_for_the_cpu_leaves_out_cuda_and_torch_of_the_lock_and_nothing_else(dockerfile, lock):
    text = (REQUIREMENTS.parent / f"Dockerfile.{dockerfile}").read_text()
    script = re.search(rf"sed -i '(.+)' /opt/slipway/requirements/{lock}\.txt", text)[1]
    path = REQUIREMENTS / f"{lock}.txt"
    left = subprocess.run(["sed", script, path], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^([a-z0-9][\w.-]*)==", left, re.MULTILINE))
    gone = pinned(path).keys() - names
    assert gone >= {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"}
    assert all(re.match(r"torch|triton|nvidia-|cuda-", name) for name in gone)
    assert not any(re.match(r"torch|triton|nvidia-(?!ml-py)|cuda-", name) for name in names)
    assert all(line.startswith(("    --hash=", *names)) for line in left.splitlines())  # no half of an entry
