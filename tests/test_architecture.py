"""The import arrows between the rooms, as a table: a new arrow is a change to it, and somebody reviews that."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room -> the rooms it may import, beside itself. The longest matching name is a module's room.
ARROWS: dict[str, set[str]] = {
    "container": set(),
    "container.contract": set(),
    "container.cuda": {"container.contract"},
    "container.images": set(),
    "container.logs": {"container.contract"},
    "container.model": set(),
    "container.recordio": set(),
    "container.__main__": {"container.cuda", "container.train", "container.serve"},
    "container.train": {
        "container.contract",
        "container.cuda",
        "container.images",
        "container.logs",
        "container.model",
        "container.recordio",
    },
    "container.serve": {
        "container.contract",
        "container.cuda",
        "container.images",
        "container.logs",
        "container.model",
        "container.recordio",
    },
    # What everything else in the launcher stands on: the file's models, errors, request values.
    "launcher": {"container.contract", "launcher.jobs"},
    "launcher.jobs": {"container.contract", "launcher"},
    # One way for every kind: a project's requests are sent, followed and collected.
    "launcher.aws": {"launcher", "launcher.jobs"},
    "launcher.run": {"launcher", "launcher.aws", "launcher.explain", "launcher.jobs"},
    "launcher.data": {"launcher", "launcher.aws", "launcher.jobs", "launcher.multipart"},
    "launcher.multipart": {"launcher", "launcher.aws"},
    "launcher.invoke": {"launcher", "launcher.aws", "launcher.jobs", "container.contract"},
    "launcher.load": {"launcher", "launcher.aws", "launcher.invoke"},
    "launcher.explain": {"launcher"},
    "launcher.project": {"launcher", "launcher.account", "launcher.aws", "launcher.data", "launcher.jobs"},
    "launcher.dry_run": {"launcher", "launcher.account", "launcher.jobs", "launcher.project"},
    "launcher.attachments": {"launcher", "launcher.jobs", "launcher.project"},
    "launcher.deployment": {"launcher", "launcher.attachments", "launcher.jobs", "launcher.project", "launcher.run"},
    "launcher.images": {
        "container.contract",
        "launcher",
        "launcher.account",
        "launcher.aws",
        "launcher.data",
        "launcher.jobs",
        "launcher.project",
        "launcher.run",
    },
    "launcher.account": {"launcher", "launcher.aws", "launcher.dry_run", "launcher.jobs", "launcher.project"},
    # Looks at this machine before anything runs on it: the local SageMaker's images among the rest.
    "launcher.doctor": {"container.contract", "launcher", "launcher.local.client"},
    "launcher.demo": {
        "launcher",
        "launcher.aws",
        "launcher.data",
        "launcher.deployment",
        "launcher.images",
        "launcher.invoke",
        "launcher.jobs",
        "launcher.load",
        "launcher.local.client",
        "launcher.project",
        "launcher.run",
    },
    # The local SageMaker is a service: of the launcher it knows nothing, and the launcher of it its client alone.
    "launcher.local": {"container.contract", "launcher.local.client"},
    "launcher.local.client": {"container.contract"},
    "launcher.check": {"container.contract", "launcher", "launcher.local"},
    # Arguments to verbs: knows everybody, and nobody knows it.
    "launcher.commands": {
        "container.contract",
        "launcher",
        "launcher.account",
        "launcher.aws",
        "launcher.check",
        "launcher.data",
        "launcher.demo",
        "launcher.deployment",
        "launcher.doctor",
        "launcher.dry_run",
        "launcher.explain",
        "launcher.images",
        "launcher.invoke",
        "launcher.jobs",
        "launcher.load",
        "launcher.local.client",
        "launcher.project",
        "launcher.run",
    },
    "launcher.cli": {"launcher", "launcher.check", "launcher.commands"},
    "launcher.__main__": {"launcher.cli"},
}
# Of everything third-party, what a room may import at all.
STANDARD_LIBRARY_ONLY = {"container.contract", "container.cuda", "container.logs", "container.__main__"}


def skipped(path: Path) -> bool:
    """Templates are copied into users' projects, and are no modules of ours."""
    return "templates" in path.parts


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted([*ROOT.glob("container/**/*.py"), *ROOT.glob("launcher/**/*.py")]):
        if skipped(path):
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports(path: Path) -> set[str]:
    """Every module the file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {_imported(node.module, alias.name) for alias in node.names}
    return names


def _imported(module: str, name: str) -> str:
    """`from launcher.local import client` imports a module of a package, `from launcher.aws import Aws` a name."""
    path = ROOT / module.replace(".", "/") / name
    return f"{module}.{name}" if path.with_suffix(".py").is_file() or path.is_dir() else module


def room_of(module: str) -> str:
    matching = [room for room in ARROWS if module == room or module.startswith(f"{room}.")]
    return max(matching, key=len)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("container", "launcher")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_the_rooms_its_own_may_know(module, path):
    own = room_of(module)
    known = {name for name, _ in modules()}
    targets = {room_of(name) for name in imports(path) if is_ours(name) and name in known}
    assert targets - {own} <= ARROWS[own], f"{path}: a new arrow from {own}"


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_package_is_imported_by_its_whole_name(module, path):
    relative = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, f"{path} imports relatively: write the whole name, it can be searched for"


@pytest.mark.parametrize("module", sorted(STANDARD_LIBRARY_ONLY))
def test_what_starts_every_container_needs_the_standard_library_only(module):
    path = dict(modules())[module]
    foreign = {name.partition(".")[0] for name in imports(path) if not is_ours(name)} - set(sys.stdlib_module_names)
    assert foreign == set()


def test_the_containers_hold_no_pydantic_and_the_serving_container_no_aws_sdk():
    for module, path in modules():
        names = {name.partition(".")[0] for name in imports(path)}
        if module.startswith("container"):
            assert not names & {"pydantic", "launcher"}, path
        if module.startswith("container.serve"):
            assert not names & {"boto3", "botocore", "sagemaker", "sagemaker_training"}, path


def test_opt_ml_and_its_variables_are_spelled_in_the_contract_alone():
    for module, path in modules():
        if module == "container.contract":
            continue
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if _is_plain_string(node)]
        assert not [text for text in strings if text.startswith("/opt/ml")], f"{path} spells /opt/ml itself"


def _is_plain_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
