"""What of a directory travels: its own files, whatever lies beside them."""

from launcher.files import files_of


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(root, **options):
    return [path.relative_to(root).as_posix() for path in files_of(root, **options)]


def test_what_tools_keep_in_a_project_does_not_travel_with_it(tmp_path):
    write(
        tmp_path,
        "train.py",
        "package/__init__.py",
        "package/__pycache__/x.pyc",
        ".git/HEAD",
        ".launcher/s3/b/k",
        "launcher.yaml",
    )
    write(tmp_path, ".venv/bin/python", "env/pyvenv.cfg", "env/lib/torch.py")
    assert names(tmp_path) == ["package/__init__.py", "train.py"]


def test_directories_that_are_named_stay_behind(tmp_path):
    write(tmp_path, "train.py", "data/train/a.csv", "data/notes.txt")
    assert names(tmp_path, without=[tmp_path / "data" / "train"]) == ["data/notes.txt", "train.py"]
    assert names(tmp_path, without=[tmp_path]) == ["data/notes.txt", "data/train/a.csv", "train.py"]


def test_a_linked_directory_is_as_good_as_its_own(tmp_path):
    write(tmp_path, "elsewhere/a.png")
    root = tmp_path / "images"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "cat.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert names(root) == ["cat/a.png", "cat.png"]


def test_a_link_to_a_directory_above_ends(tmp_path):
    write(tmp_path, "a/x.txt")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert names(tmp_path) == ["a/x.txt"]
