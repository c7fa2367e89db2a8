import subprocess
import sys

import pytest

LIGHT = "from container.serve.vision import import_torchvision; import_torchvision(); import sys; "


def run(code):
    done = subprocess.run([sys.executable, "-c", LIGHT + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_built_in_classifier_loads_without_torchs_compiler():
    code = "import container.serve.model_loader; print('torch._dynamo' in sys.modules, 'torchvision' in sys.modules)"
    assert run(code) == ["False", "True"]


@pytest.mark.parametrize(
    "code",
    [
        "import torch._dynamo.utils; print(bool(torch._dynamo.utils.counters is not None))",
        pytest.param("import torchvision.transforms.v2; print('torch._dynamo' in sys.modules)", marks=pytest.mark.slow),
        pytest.param(
            "import torch, torchvision; m = sys.modules['torchvision.ops.roi_align']; "
            "print(m.is_compile_supported('cpu') in (True, False))",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_compiler_is_there_for_who_asks(code):
    assert run(code) == ["True"]


def test_names_that_another_torchvision_may_want_come_from_the_compiler_itself(tmp_path):
    (tmp_path / "torchvision.py").write_text("from torch._dynamo.utils import counters as wanted\n")
    code = (
        f"sys.modules.pop('torchvision'); sys.path.insert(0, {str(tmp_path)!r}); import_torchvision(); "
        "import torch._dynamo.utils as u; print(sys.modules['torchvision'].wanted is u.counters)"
    )
    assert run(code) == ["True"]
