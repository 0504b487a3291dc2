"""Order: what forks this process comes before what has torch compute in it."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Threads of torch do not outlive a fork: a training forked beside them aborts or hangs."""
    items.sort(
        key=lambda item: (
            not any(hasattr(getattr(item, 'module', None), n) for n in ('Run', 'run_child'))
        )
    )
