"""Work for many processes, by dask.distributed: on the cores of this machine, or on a cluster that stands.

A task whose worker ends is done by another one. Results come back one by one, and only this process writes.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def connected(address: str, most: int) -> Iterator[Any]:
    """A way to a cluster.

    Args:
        address: of its scheduler, such as "tls://host:8786"; "" begins one here, as wide as the cores allow,
            which talks to itself encrypted: else any account of this machine could give it work.
        most: workers that can be busy at a time.

    Yields:
        dask's client.

    Raises:
        ValueError: no scheduler answers at that address.
    """
    from distributed import Client, LocalCluster, Security

    logging.getLogger("distributed").setLevel(logging.ERROR)  # a worker that ends is told of by its task
    if address:
        try:
            client = Client(address, timeout="10s")
        except (OSError, ValueError) as error:
            raise ValueError(f"no dask scheduler answers at {address}: {str(error)[:200]}") from error
        with client:
            yield client
        return
    width = min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    security = Security.temporary()
    with (LocalCluster(n_workers=width, threads_per_worker=1, dashboard_address=None, host="127.0.0.1",
                       security=security, memory_limit=None, silence_logs=logging.CRITICAL) as cluster,
          Client(cluster, security=security) as client):  # fmt: skip
        yield client


def spread(
    work: Callable[..., Any], tasks: Sequence[tuple], address: str = ""
) -> Iterator[tuple[int, Any]]:
    """Do tasks on the workers.

    Args:
        work: a function that a worker can import.
        tasks: the arguments of each call.
        address: as of `connected`.

    Yields:
        (number of the task, what came of it), each task once, when it is known. A task that raised, or that
        ended several workers, comes to the exception.
    """
    from distributed import as_completed

    with connected(address, len(tasks)) as client:
        futures = {client.submit(work, *task, pure=False): n for n, task in enumerate(tasks)}
        try:
            for future in as_completed(list(futures)):
                error = future.exception()
                yield futures[future], error if error is not None else future.result()
        finally:
            client.cancel(list(futures), force=True)
