"""Envs, replay and protocol descriptions: the only Python that imports the native part."""
