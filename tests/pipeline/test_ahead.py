"""Reading ahead: in order, and never further than was allowed."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.ahead import ahead


def test_results_come_in_order_and_only_so_many_items_are_begun_beyond_the_one_that_is_taken() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = ahead(range(1000), lambda item: pool.submit(work, item), Future.result, lambda: 32)
        assert next(results) == 0
        time.sleep(0.1)
        assert len(begun) == 33
        assert list(results) == list(range(1, 1000))
