"""How long a handle lives: use after close, close while threads run, copies."""

import copy
import subprocess
import sys
import threading

import numpy as np
import pytest

from rt3_tvm import load
from rt3_tvm.errors import Rt3Error
from tests.runtime import synthetic

IDS = np.zeros((1, 8), np.int64)
USES = {
    "call": lambda b: b(input_ids=IDS),
    "profile": lambda b: b.profile(input_ids=IDS),
    "metadata": lambda b: b.metadata,
    "levels": lambda b: b.levels,
    "level": lambda b: b.level,
    "max_batch": lambda b: b.max_batch,
    "max_length": lambda b: b.max_length,
    "threads": lambda b: b.threads,
    "max_threads": lambda b: b.max_threads,
    "zeros": lambda b: b.zeros(4),
    "set_threads": lambda b: b.set_threads(1),
    "set_level": lambda b: b.set_level(1),
    "set_frequency": lambda b: b.set_frequency(1e9),
    "set_auto": lambda b: b.set_auto(),
}


@pytest.fixture
def closed(tiny_bundle):
    bundle = load(tiny_bundle)
    bundle.close()
    return bundle


@pytest.mark.parametrize("use", USES)
def test_a_closed_bundle_says_so(closed, use):
    with pytest.raises(Rt3Error, match=r"tiny\.so' is closed: load it again"):
        USES[use](closed)


def test_close_may_be_called_again_and_names_stay(closed):
    closed.close()
    assert closed.inputs[0] == "input_ids" and closed.outputs[0] == "last_hidden_state"


def test_close_waits_for_the_calls_of_other_threads(tiny_bundle):
    bundle = load(tiny_bundle)
    want = bundle(input_ids=IDS)["last_hidden_state"]
    wrong, refused = [], []
    started = threading.Barrier(5)

    def work() -> None:
        started.wait()
        while not refused:
            try:
                bundle.set_level(0)
                if not np.array_equal(bundle(input_ids=IDS)["last_hidden_state"], want):
                    wrong.append(1)
            except Rt3Error as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    bundle.close()
    for thread in threads:
        thread.join()
    assert not wrong and refused and all("is closed" in r for r in refused)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda b: b.__reduce_ex__(4)])
def test_a_handle_has_one_owner(tiny_bundle, duplicate):
    with load(tiny_bundle) as bundle:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(bundle)
        bundle(input_ids=IDS)


FORKS = """
import os, signal, sys, threading
import numpy as np
from rt3_tvm import load

ids = np.array([[1, 2, 10], [3, 3, 0]])
bundle = load(sys.argv[1])
bundle.set_threads(2)
want = bundle(input_ids=ids)["sum"]


def child(*steps):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # one that hangs is ended
        try:
            for step in steps:
                step()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def call():
    assert np.array_equal(bundle(input_ids=ids)["sum"], want)


def set_threads():
    bundle.set_threads(1)
    bundle.set_threads(2)


for steps in ((bundle.close,), (set_threads, call), (call, bundle.close), (lambda: bundle.set_level(1), bundle.close), ()):
    assert child(*steps) == 0, steps
assert child(lambda: child(call, bundle.close), call) == 0
# Forked while another thread is in a run or waits for one: that thread is not in the child.
stop = False
threads = [threading.Thread(target=lambda: [call() for _ in iter(lambda: stop, True)]) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    assert child(call, set_threads, call, bundle.close) == 0
stop = True
for thread in threads:
    thread.join()
call()
bundle.close()
print("done")
"""


def test_a_forked_child_has_a_bundle_of_its_own(tmp_path):
    bundle = synthetic.build(tmp_path).path
    done = subprocess.run(
        [sys.executable, "-c", FORKS, bundle], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout == "done\n", done.stderr
