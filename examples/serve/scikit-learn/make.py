"""Trains a small estimator, and puts it, its code and its requirements where the server looks for them."""

import shutil
from pathlib import Path

import joblib
from sklearn.tree import DecisionTreeClassifier

code = Path("ml/model/code")
code.mkdir(parents=True, exist_ok=True)
shutil.copy("inference.py", code)
shutil.copy("requirements.txt", code)
estimator = DecisionTreeClassifier(random_state=0).fit([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0])
joblib.dump(estimator, code.parent / "model.joblib")
