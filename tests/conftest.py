"""Settings for the whole suite, and Lava's environment."""

import contextlib
import os

import pytest
from hypothesis import HealthCheck, settings

from snnkit.errors import UnavailableError
from snnkit_targets import lava

settings.register_profile(
    "snnkit", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(  # other examples every time, and more of them
    "nightly", settings.get_profile("snnkit"), max_examples=400, derandomize=False, print_blob=True
)
settings.load_profile("snnkit")


@pytest.fixture(scope="session")
def lava_environment() -> lava.Environment:
    """Lava's environment; a machine that cannot have it skips, except in CI with a Python 3.10."""
    reason = lava.available()
    if reason is None:
        try:
            return lava.prepare()
        except UnavailableError as error:
            reason = str(error)
    with contextlib.suppress(UnavailableError):
        if os.environ.get("CI") and lava.find_python():
            pytest.fail(f"Lava must run here: {reason}")
    pytest.skip(reason)
