"""What is known of a model's input and output without looking into it."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interface:
    """Of one model; the default says that it takes arrays and answers with something."""

    image_shape: tuple[int, int, int] | None = None
    """[C, H, W] of one image, pixel values 0 to 255; None: arrays."""
    classes: tuple[str, ...] = ()
    example: np.ndarray | None = None
    """An array that the model takes; None: of any shape."""

    @property
    def values(self) -> int:
        """How many numbers the model's example has, at least 1."""
        if self.image_shape:
            return math.prod(self.image_shape)
        return 1 if self.example is None else max(1, self.example.size)
