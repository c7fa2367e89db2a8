"""Functions that take `context` as their last argument: request headers in, response headers out, and a refusal."""

import json

from container.serve.exchange import BadRequest

GREETINGS = {"en": "Hello", "de": "Hallo", "fr": "Bonjour"}


def model_fn(model_dir, context):
    return {"greetings": GREETINGS, "device": context.device}


def predict_fn(data, model, context):
    language = context.headers.get("accept-language", "en")
    if language not in model["greetings"]:
        raise BadRequest(f"no greeting in {language!r}; known: {', '.join(model['greetings'])}")  # the caller's 400
    context.set_response_header("X-Amzn-SageMaker-Custom-Attributes", f"language={language}")
    return {"text": f"{model['greetings'][language]}, {data['name']}", "inference_id": context.inference_id}


def output_fn(prediction, accept, context):
    context.set_response_header("Content-Language", context.headers.get("accept-language", "en"))
    return json.dumps(prediction), "application/json"
