"""How many inputs a fuzzed test gets: a few in the suite; FUZZ=1000 pytest ... gives it more."""

import os

from hypothesis import HealthCheck, settings

fuzz = settings(
    max_examples=int(os.environ.get('FUZZ', '25')),
    derandomize='FUZZ' not in os.environ,  # the suite's are the same each time
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
