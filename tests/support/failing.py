"""A task for a worker process, in a module that a worker imports quickly."""


def fail():
    raise RuntimeError("a bug")
