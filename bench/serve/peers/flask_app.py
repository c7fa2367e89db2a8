"""The textbook container: Flask under gunicorn's sync workers, as AWS's bring-your-own samples have it."""

import flask
from work import Work

WORK = Work()
app = flask.Flask(__name__)


@app.get("/ping")
def ping():
    return flask.Response("\n", 200, mimetype="application/json")


@app.post("/invocations")
def invocations():
    answer = WORK.encode(WORK.predict(WORK.decode(flask.request.data)))
    return flask.Response(answer, 200, mimetype="application/json")
