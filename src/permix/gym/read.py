"""PersonaGym's data, or questions of our own format, read and checked."""

from permix.config import GymConfig
from permix.gym.base import GymQuestion
from permix.types import Persona


def read_gym(config: GymConfig) -> tuple[tuple[Persona, ...], tuple[GymQuestion, ...]]:
    """The personas, and the questions of each, in the order of the file. DataError names file, persona and task."""
    raise NotImplementedError
