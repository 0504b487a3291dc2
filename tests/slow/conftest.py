"""Order: what forks this process comes before what has torch compute in it."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Threads of torch do not outlive a fork: a training forked beside them aborts or hangs."""

    def rank(item: pytest.Item) -> int:
        module = getattr(item, 'module', None)
        return 0 if hasattr(module, 'Run') else 1 if hasattr(module, 'run_child') else 2

    items.sort(key=rank)
