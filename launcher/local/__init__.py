"""The local SageMaker: an HTTP API in front, containers or processes behind."""
