"""A private Ray with a dashboard until SIGINT; says on standard output where it is. Run as a module."""

import contextlib
import json
import signal

import ray

from deployments.local_ray import local_ray
from deployments.local_serve import find_port

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), local_ray(num_cpus=4, include_dashboard=True):
        dashboard = f"http://{ray._private.worker.global_worker.node.address_info['webui_url']}"
        address = ray.get_runtime_context().gcs_address
        said = {"dashboard": dashboard, "address": address, "free_port": find_port("127.0.0.1", 0)}
        print(json.dumps(said), flush=True)
        signal.pause()
