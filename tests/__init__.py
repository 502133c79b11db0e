"""Importable as a package: the wheels of some engines install a package of the same name, which would hide these files."""
