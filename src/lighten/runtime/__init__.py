"""Artifacts, and the runtimes that run and time them. Importing this needs neither torch nor any runtime."""
