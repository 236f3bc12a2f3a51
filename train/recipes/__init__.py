"""One recipe a file: a docstring with command, cost and result, and a function `config()`."""
