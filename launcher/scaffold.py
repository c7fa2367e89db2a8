"""`init`: a new project that trains, serves and passes its own test as it stands; or settings for code there is."""

import json
import re
from pathlib import Path

from launcher.errors import ConfigError

TEMPLATES = Path(__file__).parent / "templates"
# Template file -> place in the project.
PLACES = {
    "README.md": "README.md",
    "launcher.yaml": "launcher.yaml",
    "train.py": "src/train.py",
    "network.py": "src/network.py",
    "inference.py": "src/inference.py",
    "test_project.py": "tests/test_project.py",
    "gitignore": ".gitignore",
}
PROGRAM, HANDLERS = "train.py", "inference.py"  # where neither setting names another
NAMED = ("README.md", "launcher.yaml")  # `{name}` in them is the project's
SAMPLE = "sample.json"  # a request: `python -m launcher invoke sample.json`
PER_CLASS = {"train": 20, "validation": 5}  # images of the sample


def template_names() -> list[str]:
    """The projects that stand by themselves."""
    return sorted(path.name for path in TEMPLATES.iterdir() if (path / "README.md").is_file())


def has_code(directory: Path) -> bool:
    """Whether there are Python files in a directory or right below it."""
    return any(True for pattern in ("*.py", "*/*.py") for _ in directory.glob(pattern))


def adopt_project(directory: Path) -> list[Path]:
    """Write `launcher.yaml`, and nothing else but a `.gitignore`, for the code that lies in a directory.

    Raises:
        ConfigError: there is one already.
    """
    target = directory / "launcher.yaml"
    if target.exists():
        raise ConfigError(f"{target} is there already; change it, or name another directory")
    found = sorted(directory.glob(PROGRAM)) + sorted(directory.glob(f"*/{PROGRAM}"))
    code = found[0].parent if found else directory
    place = code.relative_to(directory).as_posix()
    values = {
        "name": project_name(directory),
        "code": place,
        "program": PROGRAM if found else f"{PROGRAM}   # there is none: name the script to run",
        "serving": ("" if (code / HANDLERS).exists() else "# ") + f"code: {place}",
    }
    directory.mkdir(parents=True, exist_ok=True)
    target.write_text((TEMPLATES / "own" / target.name).read_text().format(**values))
    ignored = directory / ".gitignore"
    if ignored.exists():
        return [target]
    ignored.write_text((TEMPLATES / "own" / "gitignore").read_text())
    return [target, ignored]


def write_project(directory: Path, template: str) -> list[Path]:
    """Write a project.

    Returns:
        The files that were written, without the sample data.

    Raises:
        ConfigError: one of the files is there already; nothing is written then.
    """
    targets = {name: directory / place for name, place in PLACES.items()}
    sample = directory / SAMPLE
    taken = [str(path) for path in (*targets.values(), sample) if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} is there already; name another directory")
    for name, path in targets.items():
        text = (TEMPLATES / template / name).read_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name=project_name(directory)) if name in NAMED else text)
    data = directory / "data"
    rows = write_images(data) if template == "images" else write_tables(data)
    sample.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")
    return [*targets.values(), sample]


def project_name(directory: Path) -> str:
    """The directory's name as SageMaker takes names."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", directory.resolve().name).strip("-")[:40].strip("-") or "project"


def write_images(target: Path) -> list[list[float]]:
    """A few of scikit-learn's handwritten digits as PNG folders.

    Returns:
        A request: the pixels [8, 8], 0..255, of an image that is in none of them.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # uint8 [1797, 8, 8]
    for label in range(10):
        numbers = iter(int(number) for number in (digits.target == label).nonzero()[0])
        for part, count in PER_CLASS.items():
            folder = target / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                number = next(numbers)
                Image.fromarray(pixels[number]).save(folder / f"{number:04d}.png")
    return pixels[-1].tolist()


def write_tables(target: Path) -> list[list[float]]:
    """Scikit-learn's wines as CSV: the label first, then 13 measurements; `transform` has the measurements alone.

    Returns:
        A request: the measurements of three wines, one of each label.
    """
    from sklearn.datasets import load_wine

    wines = load_wine()
    rows = [[int(label), *map(float, row)] for label, row in zip(wines.target, wines.data, strict=True)]
    validation = rows[::5]
    parts = {
        "train/wines.csv": [row for number, row in enumerate(rows) if number % 5],
        "validation/wines.csv": validation,
        "transform/wines.csv": [row[1:] for row in validation],
    }
    for name, part in parts.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in part))
    return [next(row[1:] for row in validation if row[0] == label) for label in range(3)]
