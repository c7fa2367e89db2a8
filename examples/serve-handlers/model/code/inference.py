"""A model of one's own: a word counter that answers in JSON, and streams its answer where the caller asks for it."""

import json
from pathlib import Path


def model_fn(model_dir):
    return set(json.loads((Path(model_dir) / "stopwords.json").read_text()))


def input_fn(data, content_type):
    return data.split() if content_type == "text/plain" else json.loads(data)["text"].split()


def predict_fn(words, stopwords, context):
    counts = {}
    for word in words:
        if word.lower() not in stopwords:
            counts[word.lower()] = counts.get(word.lower(), 0) + 1
    context.set_response_header("X-Amzn-SageMaker-Custom-Attributes", f"words={len(words)}")
    return counts


def output_fn(counts, accept):
    if accept == "text/event-stream":
        return (f"data: {word} {count}\n\n" for word, count in counts.items())
    return json.dumps(counts), "application/json"
