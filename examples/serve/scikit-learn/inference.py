"""A scikit-learn estimator; torch is not imported, and the server starts without it."""

from pathlib import Path

import joblib


def model_fn(model_dir):
    return joblib.load(Path(model_dir) / "model.joblib")


def predict_fn(data, model):  # data: JSON, CSV and npy arrive as a numpy array
    return model.predict(data)
