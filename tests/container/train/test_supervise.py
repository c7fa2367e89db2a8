"""The bounds of waiting: for a program that does not stop, and for hosts that do not end."""

IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def never_ends():
    print("ready", flush=True)
    while True:
        time.sleep(0.1)
never_ends()
"""


def test_a_script_that_ignores_the_stop_is_killed_in_time_and_told_where_it_stood(training_job):
    job = training_job(script=IGNORES)
    job.environ["SLIPWAY_STOP_SECONDS"] = "1"
    job.start()
    job.wait_for("ready")
    job.stop()
    assert job.wait(30) == {"algo-1": 137}, job.log()
    assert job.failure() == (
        "StopTimeout: not ended 1 s after the stop signal, and killed: what it had not saved is lost "
        "(train.py:7, rank 0 on algo-1)"
    )
    assert "in never_ends" in (job.opt_ml().output_data / "errors" / "algo-1-rank-0.txt").read_text()


def test_a_shell_script_that_ignores_the_stop_is_killed_in_time(training_job):
    job = training_job(hyperparameters={"sagemaker_program": "run.sh"}, channels={"code": None})
    (job.opt_ml().channel("code") / "run.sh").write_text("trap '' TERM\necho ready\nwhile :; do sleep 0.1; done")
    job.environ["SLIPWAY_STOP_SECONDS"] = "1"
    job.start()
    job.wait_for("ready")
    job.stop()
    assert job.wait(30) == {"algo-1": 137}, job.log()
    assert job.failure().startswith("StopTimeout: not ended 1 s after the stop signal")


def test_c65_a_host_that_is_done_does_not_wait_for_ever_for_the_others(training_job):
    script = """
import os, time
print("ready", flush=True)
while os.environ["RANK"] == "1" and not os.path.exists(os.environ["SM_OUTPUT_DATA_DIR"] + "/go-on"):
    time.sleep(0.05)
"""
    job = training_job(hosts=2, script=script)
    job.environ["SLIPWAY_LINGER_SECONDS"] = "1"
    job.start()
    assert job.processes["algo-1"].wait(60) == 0, job.log()
    assert "this host is done, and others did not end within 1 s" in job.log()
    assert job.processes["algo-2"].poll() is None
    (job.opt_ml("algo-2").output_data / "go-on").touch()
    assert job.wait(60) == {"algo-1": 0, "algo-2": 0}, job.log("algo-2")
    assert job.failure("algo-2") == ""
