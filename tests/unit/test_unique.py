from concurrent.futures import ThreadPoolExecutor

from gpu_daemon.unique import AT_ONCE, uuid4


def test_ids_are_random_uuids_and_none_comes_twice_whatever_the_thread() -> None:
    n = 10 * AT_ONCE + 1
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda _: uuid4(), range(n)))
    assert len(set(ids)) == n
    assert {each.version for each in ids} == {4}
