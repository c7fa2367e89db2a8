"""A generator is sent piece by piece to a caller who asks for a stream, and as one answer to everybody else."""


def model_fn(model_dir):
    return str.upper


def predict_fn(data, model):
    for word in data["text"].split():  # each piece leaves as soon as it is yielded
        yield f"data: {model(word)}\n\n"


def output_fn(prediction, accept):
    return prediction, "text/event-stream"
