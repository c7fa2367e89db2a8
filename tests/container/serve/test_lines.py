"""A bad line of CSV or JSON Lines gets a placeholder with its index, where SLIPWAY_RECORD_PLACEHOLDERS asks for it."""

import io
import json

import numpy as np
import pytest

SWITCH = {"SLIPWAY_RECORD_PLACEHOLDERS": "true"}
SUM = "def model_fn(model_dir): return lambda rows: rows.sum(1)"
PAIR = "import numpy\ndef model_fn(model_dir): return lambda rows: numpy.stack([rows.sum(1), rows.max(1)], 1)"
CSV_BODY = b"1,2,3\n1,x,3\n\n4,5,6\n7,8\n"
JSON_BODY = b'[1, 2, 3]\n[1, "x", 3]\n\n[4, 5, 6]\n[7, 8]\n{"a"\n'


def ask(door, body, kind, accept="application/jsonlines"):
    return door.request("POST", "/invocations", body, {"Content-Type": kind, "Accept": accept})


@pytest.mark.parametrize(("kind", "body"), [("text/csv", CSV_BODY), ("application/jsonlines", JSON_BODY)])
def test_c135_a_models_bad_lines_are_answered_with_index_and_reason(open_door, user_model, kind, body):
    model = user_model(SUM)
    assert ask(open_door(model), body, kind).status == 400
    answer = ask(open_door(model, SWITCH), body, kind)
    assert answer.status == 200
    records = [json.loads(line) for line in answer.body.splitlines()]
    assert [record for record in records if isinstance(record, float | int)] == [6, 15]
    errors = [record for record in records if isinstance(record, dict)]
    assert (
        [error["index"] for error in errors] == [1, 3, 4][: len(errors)] == [i for i in (1, 3, 4) if i < len(records)]
    )
    assert "2" in errors[0]["error"]
    assert errors[1]["error"] == "line 5 holds numbers of shape [2], most lines numbers of shape [3]"


def test_c135_csv_and_npy_have_nan_in_a_bad_lines_place(open_door, user_model):
    door = open_door(user_model(PAIR), SWITCH)
    assert ask(door, CSV_BODY, "text/csv", "text/csv").body == b"6.0,3.0\nnan,nan\n15.0,6.0\nnan,nan"
    rows = np.load(io.BytesIO(ask(door, CSV_BODY, "text/csv", "application/x-npy").body))
    assert rows[[0, 2]].tolist() == [[6, 3], [15, 6]]
    assert np.isnan(rows[[1, 3]]).all()
    assert json.loads(ask(door, CSV_BODY, "text/csv", "application/json").body)[1]["index"] == 1


def test_c135_a_body_of_bad_lines_alone_is_answered_without_the_model(open_door, user_model):
    door = open_door(user_model("def model_fn(model_dir): return lambda rows: 1 / 0"), SWITCH)
    answer = ask(door, b"x", "text/csv")
    assert json.loads(answer.body) == {"index": 0, "error": "row 1, field 1 of the CSV body is no number: 'x'"}
    assert ask(door, b"x\ny", "text/csv", "text/csv").body == b"nan\nnan"
    assert ask(door, b"\n", "text/csv").status == 400


def test_c135_the_built_in_model_answers_bad_lines_alone(open_door, artifact):
    answer = ask(open_door(artifact, SWITCH), b"x\n1,2", "text/csv")
    records = [json.loads(line) for line in answer.body.splitlines()]
    assert [(record["index"], record["label"], record["score"]) for record in records] == [(0, "", None), (1, "", None)]


def test_a_predict_fn_gets_the_good_records_alone(open_door, user_model):
    door = open_door(user_model("def predict_fn(data, model): return data.tolist()"), SWITCH)
    assert [json.loads(line) for line in ask(door, CSV_BODY, "text/csv").body.splitlines()][2] == [4, 5, 6]


def test_a_model_that_does_not_answer_record_by_record_refuses_the_batch(open_door, user_model):
    for code in ("return 7", "return {'total': 7}", "return [7]"):
        answer = ask(open_door(user_model(f"def predict_fn(data, model): {code}"), SWITCH), CSV_BODY, "text/csv")
        assert answer.status == 400
        assert b"does not answer record by record" in answer.body


def test_an_output_fn_of_the_users_own_sees_whole_batches_only(open_door, user_model):
    door = open_door(user_model(SUM + "\ndef output_fn(prediction, accept): return 'x'"), SWITCH)
    assert ask(door, CSV_BODY, "text/csv").status == 400


def test_good_lines_are_answered_as_without_the_switch(open_door, user_model):
    model = user_model(PAIR)
    for kind, body in (("text/csv", b"1,2,3\n4,5,6"), ("application/jsonlines", b"[1, 2, 3]\n[4.5, 5, 6]")):
        assert ask(open_door(model, SWITCH), body, kind).body == ask(open_door(model), body, kind).body
