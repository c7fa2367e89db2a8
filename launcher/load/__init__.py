"""Load tests of an endpoint: stages of load, the picture, what to set."""
