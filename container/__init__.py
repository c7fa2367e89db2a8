"""What goes into the two images: the container side of SageMaker's contract."""
