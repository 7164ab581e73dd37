"""Python runs this file at its start. In a test these modules ask warm.py to be them: they pass
signals on and end as that ends, and that ends with them."""

import os
import sys

WARM = {"ipykernel_launcher", "trdlib", "script", "tests.bench_peers"}


def ask(module: str) -> None:
    import json
    import select
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect("\0" + os.environ["WARM"])
        about = {"module": module, "argv": sys.argv, "path": [os.getcwd(), *sys.path]}
        about |= {"cwd": os.getcwd(), "env": dict(os.environ), "python": sys.executable}
        about = json.dumps(about).encode()
        socket.send_fds(asked, [len(about).to_bytes(4)], [0, 1, 2])
        asked.sendall(about)
        if asked.recv(1) == b"n":  # it is another Python, or has other settings
            return
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda number, _: asked.send(bytes([number])))
        parent = os.getppid()
        while not select.select([asked], [], [], 1)[0]:
            if os.getppid() != parent:  # a kernel ends with who started it
                os._exit(1)
        ended = asked.recv(4)
    code = os.waitstatus_to_exitcode(int.from_bytes(ended)) if ended else 1
    if code < 0:  # by a signal
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(code)


# `-X importtime` asks what a process of its own imports
if os.environ.get("WARM") and sys.argv[:1] == ["-m"] and "importtime" not in sys._xoptions:
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if module in WARM:
        ask(module)
