"""The images: built here or in CodeBuild, pushed to ECR, and looked at before SageMaker does."""
