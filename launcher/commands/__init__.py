"""The verbs of `python -m launcher`, by what they are about. Only click is imported before a verb runs."""
