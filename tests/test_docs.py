"""The README and the pages under docs/ say what is: their commands, links, files, settings and variables exist."""

import ast
import functools
import json
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BeforeValidator
from pydantic_core import PydanticUndefined

from launcher import config
from launcher.cli import cli
from launcher.config import images, values
from launcher.dry_run import dry_calls
from launcher.jobs.api import ApiCall
from launcher.validate import problems

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if path.exists())
OPTIONS_OF_ALL = {"-c", "--config", "--set", "--local", "--dry-run", "--json", "--no-wait", "--help"}


def code_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines of fenced blocks, and code within prose; with whether it is a whole line."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            yield line, True
        else:
            yield from ((code, False) for code in re.findall(r"`([^`]+)`", line))


def commands() -> list[tuple[str, str, bool]]:
    """(page, arguments, whether it is a line to type) of every `python -m launcher …` on the pages."""
    pattern = re.compile(r"python -m launcher ([^`#\"|&;)]*)")
    return [
        (page.name, " ".join(match[1].split()), whole)
        for page in PAGES
        for line, whole in code_lines(page)
        for match in pattern.finditer(line)
        if match[1].strip() not in ("", "VERB", "…")
    ]


@pytest.mark.parametrize(("page", "arguments", "whole"), commands())
def test_every_command_on_a_page_parses(page, arguments, whole):
    """A command in prose may leave out what it works on: `python -m launcher explain`."""
    words = shlex.split(arguments)
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        name, *words = words
        assert name in command.commands, f"{command.name} has no verb {name!r}"
        command = command.commands[name]
    if isinstance(command, click.Group):
        assert not whole, "a group of verbs is no command"
    elif whole or words:
        command.make_context(command.name, words)


def test_there_are_commands_to_look_at():
    assert len(commands()) > 30


def verbs(command: click.Command = cli, name: str = "") -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield name
        return
    for verb, inner in command.commands.items():
        yield from verbs(inner, f"{name} {verb}".strip())


def test_the_table_of_verbs_names_every_verb():
    text = (ROOT / "docs" / "launcher.md").read_text().partition("## Verbs")[2].partition("\n## ")[0]
    assert set(verbs()) <= set(re.findall(r"`([^`]+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "contract.md"], ids=lambda page: page.name)
def test_every_file_of_ours_that_a_page_names_exists(page):
    names = re.findall(
        r"(?<![\w/.-])(?:container|launcher|tests|bench|examples|docs|requirements)/[\w/.-]*\w", page.read_text()
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


@functools.cache
def modules(package: str) -> dict[str, ast.Module]:
    """Dotted name -> parsed module; nothing is imported, torch stays out."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in (ROOT / package).rglob("*.py")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_python_on_a_page_imports_from_us_is_there(page):
    container = modules("container")
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("container"):
                text = ast.unparse(container[node.module])
                assert all(re.search(rf"\b{alias.name}\b", text) for alias in node.names), ast.unparse(node)


def table(page: str, marker: str) -> list[list[str]]:
    """The cells of the table that follows `<!-- marker… -->`, without its two head rows."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"<!-- {marker}\b.*? -->\n((?:\|.*\n)+)", text)
    assert found, f"{page} has no table {marker!r}"
    rows = [re.split(r"(?<!\\)\|", line.strip("|\n")) for line in found[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- hyperparameters and variables ------------------------------------------------------------------------------------


def test_the_table_of_hyperparameters_is_that_of_the_built_in_program():
    body = modules("container/train")["container.train.settings"].body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}

    def defaults(section: str, prefix: str = "") -> Iterator[tuple[str, object]]:
        for node in classes[section].body:
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                continue
            name, kind = f"{prefix}{ast.unparse(node.target)}", ast.unparse(node.annotation)
            if kind in classes:
                yield from defaults(kind, f"{name}.")
            else:
                yield name, ast.literal_eval(node.value)

    rows = {code_in(row[0])[0]: row[1] for row in table("train.md", "hyperparameters")}
    texts = {name: json.dumps(value) if isinstance(value, bool) else str(value) for name, value in defaults("Settings")}
    assert rows == texts


def variables_of(*packages: str) -> set[str]:
    """SAGEMAKER_… and SLIPWAY_… that stand as text in the code."""
    found: set[str] = set()
    for package in packages:
        for module in modules(package).values():
            texts = [
                node.value
                for node in ast.walk(module)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            found |= {text for text in texts if re.fullmatch(r"(SAGEMAKER|SLIPWAY)_[A-Z_]+", text)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_on_a_page_exists(page):
    named = set(re.findall(r"\b((?:SAGEMAKER|SLIPWAY)_[A-Z_]+)\b", page.read_text()))
    makefile = set(re.findall(r"SLIPWAY_[A-Z_]+", (ROOT / "Makefile").read_text()))
    assert named - variables_of("container", "launcher") - makefile == set()


def test_every_variable_of_the_server_is_in_its_table():
    rows = {name for row in table("serve.md", "variables") for name in code_in(row[0])}
    ours = {name for name in variables_of("container/serve") if name.startswith(("SLIPWAY_", "SAGEMAKER_SESSIONS"))}
    assert ours <= rows


# --- launcher.yaml ----------------------------------------------------------------------------------------------------

TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", typing.Any: "anything"}
SPELLINGS = {"parse_duration": "duration", "parse_gigabytes": "size", "as_text": "text"}
LIMITS = {"ge": "at least", "gt": "over", "le": "at most", "max_length": "at most"}


def config_rows(section: type[values.Section], prefix: str = "") -> Iterator[list[str]]:
    """Key, type and default of every setting; `[]` is one of a list, NAME the reader's own."""
    for name, field in section.model_fields.items():
        inner, way = inner_section(field.annotation)
        if inner is None or way != "":
            yield [f"`{prefix}{name}`", type_text(field), default_text(field.get_default(call_default_factory=True))]
        # a variant again, and scaling again
        if inner is not None and prefix + name not in ("endpoint.shadow", "endpoint.components[].scaling"):
            rows = config_rows(inner, f"{prefix}{name}{way.replace('?', '')}.")
            yield from serving_only(rows) if prefix + name == "images.serving" else rows


def serving_only(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Where the serving image's defaults are other than the training image's."""
    training = {row[0]: row for row in config_rows(images.TrainingImage, "images.serving.")}
    return (row for row in rows if row != training[row[0]])


def inner_section(annotation: object) -> tuple[type[values.Section] | None, str]:
    """The section inside an annotation, and how its keys go on: "" itself, "?" optional, "[]" or ".NAME"."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation, "") if issubclass(annotation, values.Section) else (None, "")
    ways = {list: "[]", dict: ".NAME"}
    for argument in typing.get_args(annotation):
        found, _ = inner_section(argument)
        if found is not None:
            return found, ways.get(typing.get_origin(annotation), "?")
    return None, ""


def type_text(field: typing.Any) -> str:
    limits = [
        f"{word} {getattr(item, limit)}"
        for item in field.metadata
        for limit, word in LIMITS.items()
        if isinstance(getattr(item, limit, None), int | float)
    ]
    return ", ".join([kind_text(field.annotation, field.metadata), *limits])


def kind_text(annotation: typing.Any, metadata: typing.Sequence[object] = ()) -> str:
    spelled = [item.func.__name__ for item in metadata if isinstance(item, BeforeValidator)]
    arguments = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
    texts = {
        typing.Annotated: lambda: kind_text(arguments[0], arguments[1:]),
        typing.Union: lambda: " or ".join(map(kind_text, arguments)),
        types.UnionType: lambda: " or ".join(map(kind_text, arguments)),
        typing.Literal: lambda: ", ".join(f"`{value}`" for value in arguments),
        list: lambda: f"list of {kind_text(arguments[0])}",
        dict: lambda: f"mapping to {kind_text(arguments[1])}",
        None: lambda: TYPES.get(annotation, "section"),
    }
    known = [SPELLINGS[name] for name in spelled if name in SPELLINGS]
    return known[0] if known else texts[typing.get_origin(annotation)]()


def default_text(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if default in (None, [], {}):
        return ""
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default)
    return f"`{json.dumps(default) if isinstance(default, bool) else default}`"


def test_the_table_of_settings_has_every_key_with_its_type_and_default():
    rows = table("launcher.md", "settings")
    assert [row[:3] for row in rows] == list(config_rows(config.Config))
    assert [row[0] for row in rows if not row[3]] == []  # and says what each means


def test_every_section_of_a_setting_on_a_page_exists():
    known = {code_in(row[0])[0] for row in config_rows(config.Config)}
    known |= {key.replace("images.training.", "images.serving.") for key in known}
    known |= {key.rpartition(".")[0] for key in known}
    pattern = re.compile(r"`((?:images|training|transform|endpoint|network|limits)\.[a-z_.]+)`")
    for page in PAGES:
        assert set(pattern.findall(page.read_text())) - known == set(), page.name


def test_the_tuning_job_on_the_page_is_one_that_sagemaker_takes(monkeypatch, tmp_path):
    """Made of the very request of a job of ours."""
    block = re.search(
        r"```python\n(.*?create_hyper_parameter_tuning_job.*?)```", (ROOT / "docs/launcher.md").read_text(), re.DOTALL
    )
    settings = {"code": tmp_path, "hyperparameters": {"epochs": 3, "learning_rate": 0.1}, "spot": True}
    (tmp_path / "train.py").touch()
    (call,) = dry_calls("train", config.Config.model_validate({"training": settings}), tmp_path)
    sent = {}

    def create(**request):
        sent.update(request)

    client = types.SimpleNamespace(
        describe_training_job=lambda **_: call.request, create_hyper_parameter_tuning_job=create
    )
    monkeypatch.setattr("boto3.client", lambda _: client)
    exec(block[1], {})  # what a reader would paste
    assert problems(ApiCall("sagemaker", "CreateHyperParameterTuningJob", sent)) == []
    assert sent["TrainingJobDefinition"]["StaticHyperParameters"] == {"epochs": "3"}
