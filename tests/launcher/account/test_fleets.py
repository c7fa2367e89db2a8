"""The machines of an endpoint."""

import pytest

from launcher.account.fleets import fleets
from launcher.config.endpoint import Endpoint

MODEL = {"name": "a", "model": "job"}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, [("variant main", 1, 1)]),
        ({"serverless": True}, []),
        ({"instance_count": 2, "scaling": {"max": 4, "target": 9}}, [("variant main", 2, 4)]),
        (
            {"scaling": {"max": 2, "target": 9, "schedule": [{"name": "day", "when": "rate(12 hours)", "max": 7}]}},
            [("variant main", 1, 7)],  # the schedule's bounds hold, too
        ),
        (
            {"variants": [MODEL], "shadow": {"name": "s", "model": "job"}, "scaling": {"max": 3, "target": 9}},
            [("variant a", 1, 3), ("variant s", 1, 1)],  # a shadow does not scale
        ),
        ({"components": [MODEL], "instance_count": 0}, [("instances", 1, 1)]),
        ({"components": [MODEL], "managed_instances": {"min": 0, "max": 5}}, [("instances", 1, 5)]),
    ],
)
def test_an_endpoint_has_so_many_machines_at_first_and_at_most(section, expected):
    found = fleets(Endpoint.model_validate(section))
    assert [(item.name, item.count, item.most) for item in found] == expected
