"""The launcher: builds and pushes the images, and drives every SageMaker job kind from one YAML file."""
