"""Data modules, selectable by class name on the command line."""

from datamodules.textures import Textures

__all__ = ["Textures"]
