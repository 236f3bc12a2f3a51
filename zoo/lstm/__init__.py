"""Recurrent networks; importing this package registers them."""

from zoo.registry import import_modules

import_modules(__name__, __path__)
