"""From a configuration to the personas a stage works with."""

from permix.config import PersonasConfig
from permix.personas.pool import PersonaPool, load_pool, split_pool
from permix.progress import say


def choose_personas(config: PersonasConfig) -> PersonaPool:
    """Load the pool, give a side to personas that have none, keep the asked side and tags, then `n` of them.

    Raises DataError for a bad file and ConfigError for a choice that leaves too few.
    """
    pool = load_pool(config.pool)
    if config.split != "all":
        if any(persona.split is None for persona in pool.personas):
            pool = split_pool(pool)
            say(
                f"personas.pool = {config.pool}: has personas without a split, so a third of those is held out and a quarter of "
                f"the others is dev; taking personas.split = {config.split}"
            )
        pool = pool.side(config.split)
    if config.include or config.exclude or config.n:
        pool = pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)
    return pool
