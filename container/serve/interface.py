"""What is known of a model's input and output without looking into it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interface:
    """Of one model; the default says that it takes arrays and answers with something."""

    image_shape: tuple[int, int, int] | None = None
    """[C, H, W] of one image, pixel values 0 to 255; None: arrays of any shape."""
    classes: tuple[str, ...] = ()
