"""The properties of `tests/property/test_hostile.py`, with as many examples as time allows."""

import os
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings

from dagsched.errors import ProtocolError
from dagsched.protocol.plans import decode_plan
from tests.fuzzing import damaged, frames
from tests.property.test_hostile import decode, orders, reports, try_broker, try_master

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

EXAMPLES = int(os.environ.get("DAGSCHED_FUZZ", "5000"))
"""Of each kind; a hundred times as many take some hours."""

often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@often
@given(damaged())
def test_damaged_batches(batch):
    decode(batch)


@often
@given(frames)
def test_plans(batch):
    with suppress(ProtocolError):
        decode_plan(batch)


@often
@given(orders)
def test_orders(parcels):
    try_broker(parcels)


@often
@given(reports)
def test_reports(parcels):
    try_master(parcels)
