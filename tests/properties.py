"""How many cases a property is tried on: `make test` takes the number that stands beside the test, `MALARIA_SOAK=20` twenty times as
many. The property tests of the doors (pictures, tables, bunches, learners) are marked `door`; all of them for long:

    MALARIA_SOAK=20 python -m pytest -m door --hypothesis-show-statistics"""
import os
from hypothesis import HealthCheck,settings

SOAK = int(os.environ.get('MALARIA_SOAK', '1'))

def cases(n, **options):
    "Settings for `n` cases, with no limit on the time of one."
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=n*SOAK, deadline=None, suppress_health_check=quiet, **options)
