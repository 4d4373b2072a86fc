"""Has threads of a process stand still, and not the process: `run PROGRAM ARGUMENT…` becomes a program that
may be traced by whoever wants to, `stop PID NAME` stops its threads of that name for as long as it lives."""
import ctypes
import os
import sys

PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
ALL_THREADS = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def run(program, *arguments):
    # An error where the kernel does not ask: then everybody of the same user may.
    libc.prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
    os.execv(program, [program, *arguments])


def stop(pid, name):
    ptrace = libc.ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    tasks = f"/proc/{pid}/task"
    stopped = 0
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/comm") as file:
            if file.read().strip() != name:
                continue
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if ptrace(request, int(task), None, None) == -1:
                sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
        stopped += 1
    print(stopped, flush=True)
    try:
        while True:
            os.waitpid(-1, ALL_THREADS)
    except ChildProcessError:
        pass


{"run": run, "stop": stop}[sys.argv[1]](*sys.argv[2:])
