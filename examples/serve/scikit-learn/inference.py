"""A scikit-learn estimator; torch is not imported, and the server starts without it."""

from pathlib import Path

import joblib


def model_fn(model_dir):
    # No predict_fn: its predict gets JSON, CSV and npy as a numpy array.
    return joblib.load(Path(model_dir) / "model.joblib")
