"""Who trains the children: this process, or Ray's workers on this machine or on many."""

import logging
import os
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Protocol

import torch

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.search.children import ChildTrainer, Scores
from rt3_tvm.search.space import Choice

MakeTrainer = Callable[[], ChildTrainer]
"""Makes a trainer from files, on whichever machine it is called."""


LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before Ray is imported, it listens on loopback alone, on Linux too; its option for an address of the node does not."""


class Workers(Protocol):
    """What the search asks."""

    def train(self, children: Sequence[Choice]) -> list[Scores]:
        """Return the scores of children, in their order."""

    def close(self) -> None:
        """Give back what the workers hold."""


class InProcess:
    """One child after the other, in this process."""

    def __init__(self, make: MakeTrainer, threads: int) -> None:
        torch.set_num_threads(threads)
        self.trainer = make()

    def train(self, children: Sequence[Choice]) -> list[Scores]:
        """Return the scores of children, in their order."""
        return [self.trainer(child) for child in children]

    def close(self) -> None:
        """Do nothing."""


class RayWorkers:
    """Children spread over Ray's workers, each with as many threads as this process would use.

    Without an address Ray runs on this machine alone, listening on loopback, and ends with the search.
    """

    def __init__(self, make: MakeTrainer, threads: int, address: str | None) -> None:
        if address is None:
            os.environ[LOOPBACK_VARIABLE] = "0"
        try:
            import ray
        except ImportError:
            raise Rt3Error("`workers` ray needs Ray: pip install 'rt3-tvm[ray]'") from None
        self.ray: Any = ray
        try:
            if address is None:
                ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise JobError(f"`workers` ray: {str(error).splitlines()[0]}") from error
        if address is None and not ip_address(ray.util.get_node_ip_address()).is_loopback:
            self.close()
            raise JobError(
                f"`workers` ray: Ray was imported before {LOOPBACK_VARIABLE}=0 was set and would listen beyond loopback"
            )
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < threads:
            self.close()
            raise Rt3Error(f"`workers` ray: the cluster has {cores} cores, `threads` asks for {threads} a worker")
        worker = ray.remote(num_cpus=threads)(_RayWorker)
        self.pool: list[Any] = [worker.remote(make, threads) for _ in range(cores // threads)]

    def train(self, children: Sequence[Choice]) -> list[Scores]:
        """Return the scores of children, in their order."""
        from ray.util import ActorPool

        try:
            pool: Any = ActorPool(self.pool)
            return list(pool.map(lambda worker, child: worker.train.remote(child), list(children)))
        except self.ray.exceptions.RayError as error:
            raise JobError(f"`workers` ray: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Stop the workers, and Ray where it was started here."""
        self.ray.shutdown()


class _RayWorker:
    """One of Ray's workers: it makes its trainer once."""

    def __init__(self, make: MakeTrainer, threads: int) -> None:
        torch.set_num_threads(threads)
        self.trainer = make()

    def train(self, child: Choice) -> Scores:
        """Return the scores of a child."""
        return self.trainer(child)


def open_workers(kind: str, make: MakeTrainer, threads: int, address: str | None = None) -> Workers:
    """Return the workers of a kind."""
    return RayWorkers(make, threads, address) if kind == "ray" else InProcess(make, threads)
