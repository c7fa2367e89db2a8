"""The UCI handwritten digits that ship inside scikit-learn, as image folders a training job reads."""

from dataclasses import dataclass
from pathlib import Path

TEST_SHARE = 0.2
SEED = 7
BRIGHTEST = 16  # the data set's pixels are 0..16


@dataclass(frozen=True)
class DigitCounts:
    """How many images lie in which folder."""

    train: int
    test: int


def write_digits(target: Path) -> DigitCounts:
    """Write `train/<class>/<number>.png` and `test/<class>/<number>.png`: 8 by 8 pixels, 8-bit grey.

    The split keeps the classes' shares and is the same every time. Files that are there already stay.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / BRIGHTEST)).round().astype("uint8")  # uint8 [1797, 8, 8]
    numbers = range(len(pixels))
    train, test = train_test_split(numbers, test_size=TEST_SHARE, stratify=digits.target, random_state=SEED)
    for part, members in (("train", train), ("test", test)):
        for number in members:
            path = target / part / str(digits.target[number]) / f"{number:04d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[number]).save(path)
    return DigitCounts(len(train), len(test))
