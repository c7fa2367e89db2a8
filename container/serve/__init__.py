"""Serving: `server` starts, `asgi` and `app` are the doors, `service` the core over `batcher`, `predictor`, `codec`."""
