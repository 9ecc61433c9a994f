"""Hugging Face folders: traced from their config on the ``meta`` device, with weights read when someone asks."""

from .folder import import_folder

__all__ = ["import_folder"]
