"""pit_jax: Pixel Transformers, Vision Transformers and how much locality they need.

Importing the package imports neither jax nor flax: the modules below it do, where they
are used, so that `pit-jax --help` answers at once.
"""

__version__ = "0.1.0"
