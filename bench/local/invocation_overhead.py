"""What the local SageMaker adds to one invocation, against calling the container directly, in the same run.

    python bench/local/invocation_overhead.py [--requests 2000] [--bytes 1000]

A fake container answers at once. The same bytes go (a) to the container over a kept connection, (b) to the server over
a kept connection, (c) to the server through boto3, which signs and parses; in turns, so that a busy machine hits all.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3

from launcher.local import client

FAKE = Path(__file__).parents[2] / "tests/launcher/local/fake"
ROLE = "arn:aws:iam::123456789012:role/bench"
NAME = "bench"
SCOPE = "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/sagemaker/aws4_request"
BAR_MS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, client.RUNTIME_VARIABLE: "process", "PYTHONPATH": str(FAKE)}
        server = client.up(Path(directory), environ)
        try:
            report(measure(server, arguments.requests, b"1" * arguments.bytes))
        finally:
            client.down(Path(directory))


def measure(server: client.LocalServer, requests: int, body: bytes) -> dict[str, list[float]]:
    """Milliseconds of each request, by way."""
    session = boto3.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="us-east-1")
    deploy(session.client("sagemaker", endpoint_url=server.url))
    runtime = session.client("sagemaker-runtime", endpoint_url=server.url)
    port = json.loads(invoke(runtime, b"see"))["environ"]["SAGEMAKER_BIND_TO_PORT"]
    headers = {"Content-Type": "text/plain", "Authorization": SCOPE}
    ways: dict[str, Callable[[], bytes]] = {
        "container": over_http(f"127.0.0.1:{port}", "/invocations", body, headers),
        "server": over_http(server.url.removeprefix("http://"), f"/endpoints/{NAME}/invocations", body, headers),
        "boto3": lambda: invoke(runtime, body),
    }
    milliseconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(requests):
        for way, call in ways.items():
            began = time.perf_counter()
            assert call() == body
            milliseconds[way].append((time.perf_counter() - began) * 1000)
    return milliseconds


def deploy(sagemaker) -> None:
    sagemaker.create_model(ModelName=NAME, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "bench"})
    variant = {"VariantName": "A", "ModelName": NAME, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=NAME, WaiterConfig={"Delay": 1})


def invoke(runtime, body: bytes) -> bytes:
    return runtime.invoke_endpoint(EndpointName=NAME, Body=body, ContentType="text/plain")["Body"].read()


def over_http(host: str, path: str, body: bytes, headers: dict[str, str]) -> Callable[[], bytes]:
    connection = http.client.HTTPConnection(host)

    def call() -> bytes:
        connection.request("POST", path, body, headers)
        return connection.getresponse().read()

    return call


def report(milliseconds: dict[str, list[float]]) -> None:
    for way, times in milliseconds.items():
        cuts = statistics.quantiles(times, n=100)
        print(f"{way:10} p50 {cuts[49]:6.2f} ms   p99 {cuts[98]:6.2f} ms")
    overhead = statistics.median(milliseconds["server"]) - statistics.median(milliseconds["container"])
    verdict = "within" if overhead <= BAR_MS else "over"
    print(f"overhead   p50 {overhead:6.2f} ms   ({verdict} the bar of {BAR_MS:g} ms)")


if __name__ == "__main__":
    main()
