"""What a complete Hub repository is, and how it is written, read, verified and uploaded."""

from .errors import RepositoryError

__all__ = ["RepositoryError"]
