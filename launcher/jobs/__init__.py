"""One module per job kind: pure functions from config to the API's own request bodies."""
