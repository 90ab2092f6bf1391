"""`pit-jax weights import|export`: between run directories and files other tools read."""

import argparse
from collections.abc import Callable

from etils import epath

from pit_jax import checkpoint, configfile, rundir
