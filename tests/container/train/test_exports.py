"""What a user's script may import from `container.train`."""

import subprocess
import sys

import pytest

import container.train


@pytest.mark.parametrize("name", container.train.__all__)
def test_every_helper_can_be_imported(name):
    assert getattr(container.train, name).__name__ == name


def test_another_name_is_no_helper():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        container.train.Trainer  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import sys, container.train; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
