"""An endpoint is deleted with what hangs on it."""

import pytest

from launcher.deployment import delete as deleting
from launcher.deployment import deploy
from launcher.deployment.delete import delete
from launcher.errors import TimedOut

ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}


def test_deleting_an_endpoint_ends_its_scaling_too(project, canned, aws, described, yaml):
    made = project("endpoint.scaling={max: 3, target: 50}", yaml=yaml)
    canned("DescribeEndpoint", described(EndpointConfigName="new"), described(), MISSING)
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    deploy.finish(made, deploy.Plan("digits", "new", None, ()), lambda *_: described(EndpointConfigName="new"))
    delete(made, "digits", wait=False)
    reply = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")
    assert reply["ScalableTargets"] == []


def test_a_caller_who_may_not_see_scaling_can_still_delete(project, canned, caplog, described, yaml):
    denied = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}
    canned("DescribeScalableTargets", denied, service="application-autoscaling")
    canned("DescribeEndpoint", described(), MISSING)
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    delete(project(yaml=yaml), "digits")
    assert "scaling of digits stays as it is" in caplog.text


def test_deleting_an_endpoint_has_an_end(project, canned, monkeypatch, described, yaml):
    canned("DescribeEndpoint", described(EndpointStatus="Deleting", ProductionVariants=[]))
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    monkeypatch.setattr(deleting, "DELETE_SECONDS", -1)
    with pytest.raises(TimedOut, match="endpoint digits is still being deleted"):
        delete(project(yaml=yaml), "digits")
