"""Writes the 1,797 digits of scikit-learn as PNG folders into data/."""

from pathlib import Path

from launcher.digits import write_digits

if __name__ == "__main__":
    print(write_digits(Path(__file__).parent / "data"))
