"""Writes scikit-learn's 178 wines as CSV with a header into data/."""

import csv
from pathlib import Path

from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

if __name__ == "__main__":
    wine = load_wine()
    split = train_test_split(wine.data, wine.target, test_size=0.2, random_state=0, stratify=wine.target)
    for channel, rows, classes in (("train", split[0], split[2]), ("validation", split[1], split[3])):
        path = Path(__file__).parent / "data" / channel / "wine.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cultivar", *wine.feature_names])
            writer.writerows([wine.target_names[label], *row] for label, row in zip(classes, rows, strict=True))
