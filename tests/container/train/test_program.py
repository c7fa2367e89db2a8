"""Which program runs, and the ways its code arrives."""

import tarfile

import pytest

from container import contract
from container.train import program as program_module
from container.train.environment import read_environment
from container.train.hyperparameters import HyperparameterError
from container.train.program import ProgramError, check_builtin_job, find_program


def tarball(path, **files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            source = path.parent / name
            source.write_text(text)
            archive.add(source, name.replace("_", "."))
            source.unlink()
    return path


@pytest.fixture
def find(write_opt_ml, monkeypatch, tmp_path):
    """Find the program of a job with these hyperparameters and variables."""
    monkeypatch.setattr(contract, "IMAGE_CODE_DIR", tmp_path / "image")

    def run(hyperparameters=None, environ=None, channels=None):
        opt_ml = write_opt_ml(hyperparameters, channels)
        monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(opt_ml.base))
        return find_program(read_environment(opt_ml, {}), environ or {}), opt_ml

    return run


def test_a_false_that_argparse_would_take_for_true_is_told(find, write_opt_ml, caplog):
    write_opt_ml({}).code.mkdir(parents=True)
    script = """
parser.add_argument("--amp", default=True, type=bool)
parser.add_argument('--flip', type = bool)
parser.add_argument("--resume", type=ast.literal_eval)
"""
    (write_opt_ml({}).code / "train.py").write_text(script)
    find({"amp": "false", "flip": "true", "resume": "false"})
    (warning,) = caplog.messages
    assert warning.startswith("--amp False is True to the script")


def test_without_any_script_the_built_in_program_runs(find):
    assert find()[0].kind == "builtin"
    assert (
        find({"sagemaker_program": '""'}, {"SAGEMAKER_PROGRAM": "", "SAGEMAKER_SUBMIT_DIRECTORY": ""})[0].kind
        == "builtin"
    )


def test_a_script_baked_into_the_image_runs_without_being_named(find, tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "train.py").touch()
    found, _ = find()
    assert (found.name, found.kind, found.directory) == ("train.py", "script", tmp_path / "image")


@pytest.mark.parametrize("name", ['"go.py"', "go.py"], ids=["v2-quoted", "plain"])
def test_c20_c69_code_in_a_channel_runs_where_it_lies(find, write_opt_ml, name):
    channel = write_opt_ml().channel("code")
    channel.mkdir(parents=True)
    (channel / "go.py").touch()
    found, _ = find({"sagemaker_program": name}, channels={"code": {"TrainingInputMode": "FastFile"}})
    assert (found.name, found.directory) == ("go.py", channel)


def test_the_variable_wins_over_the_hyperparameter(find, write_opt_ml):
    channel = write_opt_ml().channel("code")
    channel.mkdir(parents=True)
    (channel / "a.py").touch()
    found, _ = find({"sagemaker_program": "b.py"}, {"SAGEMAKER_PROGRAM": "a.py"}, {"code": {}})
    assert found.name == "a.py"


def test_a_tarball_in_the_code_channel_is_unpacked(write_opt_ml, training_job, tmp_path):
    job = training_job(hyperparameters={"sagemaker_program": '"go.py"', "lr": "0.5"}, channels={"code": None})
    tarball(job.opt_ml().channel("code") / "sourcedir.tar.gz", go_py="import sys; print('args', sys.argv[1:])")
    assert job.run() == {"algo-1": 0}, job.log()
    assert "args ['--lr', '0.5']" in job.log()


def test_c71_a_submitted_tarball_runs_from_opt_ml_code_with_hyperparameters_as_arguments(training_job, tmp_path):
    archive = tarball(tmp_path / "source.tar.gz", train_py="import os, sys; print('in', os.getcwd(), sys.argv[1:])")
    hyperparameters = {
        "sagemaker_program": '"train.py"',
        "sagemaker_submit_directory": f'"{archive}"',
        "epochs": "3",
    }
    job = training_job(hyperparameters=hyperparameters)
    assert job.run() == {"algo-1": 0}, job.log()
    assert f"in {job.opt_ml().code} ['--epochs', '3']" in job.log()


def test_a_package_runs_as_a_module(training_job):
    job = training_job(hyperparameters={"sagemaker_program": "trainer", "x": "1"}, channels={"code": None})
    package = job.opt_ml().channel("code") / "trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import sys\nfrom trainer import other\nprint('module', sys.argv[1:], other.name)"
    )
    (package / "other.py").write_text("name = 'sibling'")
    assert job.run() == {"algo-1": 0}, job.log()
    assert "module ['-x', '1'] sibling" in job.log()


def test_a_named_program_without_code_is_an_error_that_lists_the_places(find):
    with pytest.raises(ProgramError, match="program 'go.py' is nowhere"):
        find({"sagemaker_program": "go.py"})


def test_a_program_that_is_not_among_the_code_is_an_error_that_lists_what_is(find, write_opt_ml):
    channel = write_opt_ml().channel("code")
    channel.mkdir(parents=True)
    (channel / "other.py").touch()
    with pytest.raises(ProgramError, match=r"train\.py does not exist; .* holds other\.py"):
        find(channels={"code": {}})


def test_a_submit_directory_that_does_not_exist_is_an_error(find):
    with pytest.raises(ProgramError, match="does not exist in the container"):
        find({"sagemaker_program": "a.py", "sagemaker_submit_directory": "/nowhere/a.tar.gz"})


def test_code_in_s3_that_cannot_be_reached_is_an_error_that_names_the_alternative(find, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ProgramError, match="deliver the code as a channel named 'code'"):
        find({"sagemaker_program": "a.py", "sagemaker_submit_directory": "s3://bucket/sourcedir.tar.gz"})


def test_requirements_that_cannot_be_installed_are_an_error_with_the_way_out(find, write_opt_ml, monkeypatch):
    channel = write_opt_ml().channel("code")
    channel.mkdir(parents=True)
    (channel / "train.py").touch()
    (channel / "requirements.txt").write_text("./no-such-package\n")
    with pytest.raises(ProgramError, match=r"(?s)pip cannot install .*Under network isolation"):
        find(channels={"code": {}})


def test_requirements_are_installed_before_the_script_runs(find, write_opt_ml, monkeypatch):
    channel = write_opt_ml().channel("code")
    channel.mkdir(parents=True)
    (channel / "train.py").touch()
    (channel / "requirements.txt").write_text("pytest\n")  # is there already: pip needs no network
    assert find(channels={"code": {}})[0].name == "train.py"


def test_the_built_in_program_is_checked_before_it_starts(write_opt_ml):
    with pytest.raises(ProgramError, match="missing channel 'train'"):
        check_builtin_job(read_environment(write_opt_ml(channels={"training": {}}), {}))
    with pytest.raises(HyperparameterError):
        check_builtin_job(read_environment(write_opt_ml({"lr": "1"}, {"train": {}}), {}))
    with pytest.raises(HyperparameterError, match="patience=3 needs channel 'validation'"):
        check_builtin_job(read_environment(write_opt_ml({"patience": "3"}, {"train": {}}), {}))
    assert program_module.BUILTIN_MODULE == "container.train.classify"
