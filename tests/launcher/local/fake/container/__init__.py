"""A stand-in for the containers' program: starts in milliseconds and does what its hyperparameters or requests say.

It hides the real `container` package for processes that have this directory's parent on PYTHONPATH; whatever it lacks
(`container.contract`) comes from the real one.
"""

from pathlib import Path

__path__.append(str(Path(__file__).parents[5] / "container"))
