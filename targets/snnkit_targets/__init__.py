"""Targets, one module a runner, each with ``Options``, ``available``, ``check`` and ``run``."""
