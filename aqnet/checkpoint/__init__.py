"""Checkpoints: written beside and renamed, verified, retained, found again."""

from aqnet.checkpoint.files import Damaged, Loaded, find, read, write
from aqnet.checkpoint.retained import Checkpoints
