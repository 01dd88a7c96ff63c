"""A district that behaves like one, from a seed: for the demo, the tests and measurements."""

from theon.simulation.district import District, last_sunday_before, plan_district
from theon.simulation.files import Delivery, write_district, write_logstore

__all__ = [
    "Delivery",
    "District",
    "last_sunday_before",
    "plan_district",
    "write_district",
    "write_logstore",
]
