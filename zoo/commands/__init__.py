"""The commands of python -m zoo, a module each: `add` declares one to the parser, a function runs it."""
