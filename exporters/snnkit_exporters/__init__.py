"""Exporters, one module a format, each with ``Options``, ``check`` and ``export``."""
