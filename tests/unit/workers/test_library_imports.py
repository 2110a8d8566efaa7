import gc
import pickle
import subprocess
import sys

from workers.library_imports import import_libraries
from workers.rendezvous import Rendezvous


def test_imports_leave_the_garbage_collector_on() -> None:
    import_libraries()
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_coordinator_reads_what_leader_and_followers_tell_each_other_without_torch() -> None:
    message = pickle.dumps(Rendezvous("127.0.0.1", 1, 2, b"key"))
    code = f"import pickle, sys, deployments.group; pickle.loads({message!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
